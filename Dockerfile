# An image that converts, builds, runs and measures on CPUs: docker build -t opt_trt .
# No machine of this project has built or run it yet. Engines are compiled in a container on the machine that runs them,
# so the image keeps the C++ compiler. Python and torch are those of requirements.txt.
FROM python:3.11-slim

RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/opt_trt
COPY requirements.txt ./
RUN pip install --no-cache-dir "$(grep '^torch==' requirements.txt)" --index-url https://download.pytorch.org/whl/cpu \
 && pip install --no-cache-dir --requirement requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps .

# The commands' caches and results lie on volumes, and belong to a user without rights.
RUN useradd --create-home opt && mkdir /work /cache && chown opt:opt /work /cache
USER opt
ENV XDG_CACHE_HOME=/cache
WORKDIR /work
ENTRYPOINT ["python", "-m", "opt_trt"]
CMD ["--help"]
