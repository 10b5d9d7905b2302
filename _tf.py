import sys,time,tempfile
from pathlib import Path
from tests.fuzz._inputs import Fuzzer
from tests.fuzz._targets import TARGETS
count=int(sys.argv[1]); seed=int(sys.argv[2]); only=sys.argv[3:]
t0=time.time(); w=Path(tempfile.mkdtemp(prefix="fz")); f=Fuzzer(w)
total=0
for t in only or TARGETS:
    t1=time.time(); print(*f.problems(t,seed,0)); t2=time.time()
    for line in f.problems(t,seed,count): print(line)
    print(f"{t:20} setup {t2-t1:.2f} rest {time.time()-t2:.2f} per {(time.time()-t2)/max(1,count):.2f}",flush=True)
f.close(); print(w, time.time()-t0)
