"""The operations of a graph, computed by the tactics that a build has chosen."""
