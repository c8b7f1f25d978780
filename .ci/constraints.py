"""Print constraints.txt for the environment that runs this: every package, at the version it has here."""

from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

OURS = {"curator-dali", "pip"}

print("# What CI installs, to the release. It binds `make` and CI, not those who install curator-dali.")
print("# Rewrite it with `make constraints`, on the Python that CI runs (3.11). Where a release has left Python 3.10")
print("# behind, 3.10 is free to take an older one. torch is written by hand: a CPU build of this release is at hand")
print("# in CI, and any other would pull gigabytes of CUDA.")
for dist in sorted(distributions(), key=lambda dist: canonicalize_name(dist.name)):
    if (name := canonicalize_name(dist.name)) not in OURS:
        new = not SpecifierSet(dist.metadata["Requires-Python"] or "").contains("3.10.99")
        print(f"{name}=={Version(dist.version).public}" + (' ; python_version >= "3.11"' if new else ""))
