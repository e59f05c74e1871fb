# Sourced by the other scripts: finds a Python, makes .venv and installs into it, without asking.
# Needs a shell, python3 >= 3.11 and a package index that pip's own settings name; no python3-venv.

cd "$(dirname "$0")/.." || exit 1
ROOT=$PWD
PYTHON=$ROOT/.venv/bin/python

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

find_python() {
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "python3 3.11 or later is needed; on Debian and Ubuntu: apt-get install python3"
}

# Debian keeps ensurepip in python3-venv. Without it the environment is made bare and pip is fetched
# from the package index, checked against the digest that the index tells.
bootstrap_pip() {
    "$PYTHON" - "$ROOT/.venv" <<'PY'
import hashlib, json, os, ssl, subprocess, sys, urllib.parse, urllib.request

index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
request = urllib.request.Request(f"{index}/pip/", headers=accept)
with urllib.request.urlopen(request, timeout=60, context=context) as answer:
    files = json.load(answer)["files"]
wheels = [
    one
    for one in files
    if one["filename"].endswith("-py3-none-any.whl") and not one.get("yanked")
    and all(part.isdigit() for part in one["filename"].split("-")[1].split("."))
]
newest = max(wheels, key=lambda one: [int(part) for part in one["filename"].split("-")[1].split(".")])
address = urllib.parse.urljoin(f"{index}/pip/", newest["url"])
with urllib.request.urlopen(address, timeout=120, context=context) as answer:
    data = answer.read()
if hashlib.sha256(data).hexdigest() != newest["hashes"]["sha256"]:
    sys.exit("the downloaded pip does not have the digest that the index tells")
path = os.path.join(sys.argv[1], newest["filename"])
with open(path, "wb") as file:
    file.write(data)
subprocess.run([sys.executable, os.path.join(path, "pip"), "install", "--quiet", "--no-index", path], check=True)
os.unlink(path)
PY
}

make_venv() {
    base=$(find_python) || exit 1
    say "Making the virtual environment .venv with $base"
    rm -rf .venv
    if "$base" -c 'import ensurepip' 2>/dev/null && "$base" -m venv .venv 2>/dev/null; then
        return
    fi
    rm -rf .venv
    "$base" -m venv --without-pip .venv || die "$base cannot make a virtual environment"
    bootstrap_pip || die "pip could not be fetched; with rights, 'apt-get install python3-venv' provides it"
}

# install EXTRA: mailgate itself, editable, with one of its extras; again only when pyproject.toml changed.
install() {
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        make_venv
    fi
    stamp=.venv/.installed-$1
    if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || ! [ -x .venv/bin/mailgate ]; then
        say "Installing mailgate with what '$1' needs into .venv"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".[$1]" ||
            die "pip could not install mailgate's dependencies (see above)"
        : >"$stamp"
    fi
}

present() {
    case $1 in
        # A path may hold a pattern for the machine's architecture.
        # shellcheck disable=SC2086
        /*) [ -e "$(echo $1)" ] ;;
        *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# need PROGRAM=PACKAGE...: what the tests run against, from Debian's packages where that is allowed.
need() {
    missing=
    for pair in "$@"; do
        present "${pair%%=*}" || missing="$missing ${pair#*=}"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "Installing from Debian's packages:$missing"
        # The servers are run by the tests on ports of their own: the packages must not start theirs.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
            trap 'rm -f "$policy"' EXIT
        fi
        log=$(mktemp)
        # shellcheck disable=SC2086
        if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } \
            >"$log" 2>&1; then
            missing=
        else
            tail -n 20 "$log" >&2
        fi
        rm -f "$log"
    fi
    if [ -n "$missing" ]; then
        say "=================================================================================="
        say "NOT INSTALLED:$missing"
        say "Install them with: apt-get install$missing"
        say "The tests that need them are skipped and counted (in CI they fail)."
        say "=================================================================================="
    fi
}

# unpack FOLDER PACKAGE...: a mail server of Debian's that excludes one that is installed. It is put into
# .venv/servers/FOLDER with all that it needs and the machine has not, without being installed; no rights are needed.
unpack() {
    name=$1
    shift
    [ ! -e ".venv/servers/$name/.complete" ] || return 0
    say "Unpacking Debian's packages into .venv/servers/$name: $*"
    rm -rf ".venv/servers/$name"
    mkdir -p ".venv/servers/$name/packages"
    if (
        { [ "$(id -u)" != 0 ] || apt-get update; } &&
            closure=$(apt-get --simulate --no-install-recommends install "$@" | sed -n 's/^Inst \([^ ]*\).*/\1/p') &&
            [ -n "$closure" ] &&
            cd ".venv/servers/$name/packages" &&
            # shellcheck disable=SC2086
            apt-get download $closure &&
            for package in *.deb; do
                dpkg-deb --extract "$package" .. || exit 1
            done
    ) >".venv/servers/$name.log" 2>&1; then
        rm -rf ".venv/servers/$name/packages"
        : >".venv/servers/$name/.complete"
    else
        tail -n 20 ".venv/servers/$name.log" >&2
        say "=================================================================================="
        say "NOT UNPACKED: $* (are they in the package lists? apt-get update)"
        say "The tests that need them are skipped and counted (in CI they fail)."
        say "=================================================================================="
    fi
}
