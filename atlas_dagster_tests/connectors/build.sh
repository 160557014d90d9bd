#!/usr/bin/env bash
# Builds the connector images that the tests run, without pulling anything: a Debian base made by
# debootstrap, on it real connectors from their PyPI packages, and our own source-standin,
# source-chaos and source-ledger; and what stands in for the images of docker-compose.yml.
#
# Does nothing, quickly, when all is built already. An image is built again when what it is made of
# changes; one of the same name that was not built here (a pulled airbyte/source-faker) is kept.
#
#   ATLAS_TEST_BASE   another base with Python 3.11, instead of debootstrap (which needs root),
#                     such as python:3.11-slim-bookworm
set -euo pipefail

FAKER_VERSION=7.2.1
STANDIN_VERSION=2
CHAOS_VERSION=1
LEDGER_VERSION=2
POSTGRES_VERSION=2
HAPROXY_VERSION=1
# Of the CDK, as in atlas_dagster/runners/manifest.py.
MANIFEST_VERSION=7.39.1
# The newest whose dependencies can be installed.
FILE_VERSION=0.5.39

BASE=${ATLAS_TEST_BASE:-atlas-test/base:bookworm}
FAKER_IMAGE=airbyte/source-faker:$FAKER_VERSION
MANIFEST_IMAGE=airbyte/source-declarative-manifest:$MANIFEST_VERSION
FILE_IMAGE=airbyte/source-file:$FILE_VERSION
STANDIN_IMAGE=atlas-test/source-standin:$STANDIN_VERSION
CHAOS_IMAGE=atlas-test/source-chaos:$CHAOS_VERSION
LEDGER_IMAGE=atlas-test/source-ledger:$LEDGER_VERSION
POSTGRES_IMAGE=atlas-test/postgres:$POSTGRES_VERSION
HAPROXY_IMAGE=atlas-test/haproxy:$HAPROXY_VERSION
INPUTS_LABEL=test-image-inputs

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
uv=$here/../../.venv/bin/uv
export DOCKER_BUILDKIT=0 # the classic builder: the only one in Debian's docker.io

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

work=$(mktemp -d "${TMPDIR:-/var/tmp}/atlas-images.XXXXXX")
clean() {
    # An interrupted debootstrap leaves /proc and /sys mounted in its root: never delete through them.
    local mounted
    for mounted in "$work"/base/{proc,sys}; do
        mountpoint -q "$mounted" && umount --recursive "$mounted"
    done
    rm -rf --one-file-system "$work"
}
trap clean EXIT

exists() { docker image inspect "$1" >/dev/null 2>&1; }

# current IMAGE INPUTS: it was made of these, or was not made here.
current() {
    local made
    made=$(docker image inspect --format "{{index .Config.Labels \"$INPUTS_LABEL\"}}" "$1" 2>/dev/null) || return 1
    [[ -z $made || $made == "$2" ]]
}

# inputs FILE... : a digest of the files and of the words in front of "--".
inputs() {
    local words=()
    while [[ $1 != -- ]]; do
        words+=("$1")
        shift
    done
    shift
    { printf '%s\n' "${words[@]}" && cat "$@"; } | sha256sum | cut -c1-16
}

build_base() {
    exists "$BASE" && return
    [[ -z ${ATLAS_TEST_BASE:-} ]] || {
        docker pull --quiet "$BASE"
        return
    }
    ((EUID == 0)) || die "Building $BASE needs root; or set ATLAS_TEST_BASE=python:3.11-slim-bookworm."
    say "Building $BASE (about a minute)"
    command -v debootstrap >/dev/null || {
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap
    } >&2
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        bookworm "$work/base" >"$work/debootstrap.log" 2>&1 || {
        tail -n 40 "$work/debootstrap.log" >&2
        die "debootstrap failed."
    }
    tar -C "$work/base" --exclude=./var/cache/apt/* --exclude=./var/lib/apt/lists/* -c . |
        docker import - "$BASE" >/dev/null
}

# build IMAGE INPUTS CONTEXT DOCKERFILE [NETWORK]
build() {
    docker build --quiet --network "${5:-none}" --force-rm --build-arg "BASE=$BASE" \
        --label "$INPUTS_LABEL=$2" --tag "$1" --file "$4" "$3" >/dev/null
}

# build_pypi IMAGE MODULE PACKAGE==VERSION [UV OPTION...]: a connector started by MODULE's run().
build_pypi() {
    local image=$1 module=$2 digest context
    shift 2
    digest=$(inputs "$BASE" "$module" "$@" -- "$here/pypi/Dockerfile")
    current "$image" "$digest" && return
    [[ -x $uv ]] || die "There is no $uv: run 'make .venv' first."
    say "Building $image"
    context=$work/$module
    "$uv" pip install --quiet --target "$context/site-packages" \
        --python-version 3.11 --python-platform "$(uname -m)-manylinux_2_28" --only-binary :all: "$@"
    printf 'from %s import run\n\nrun()\n' "$module" >"$context/main.py"
    build "$image" "$digest" "$context" "$here/pypi/Dockerfile"
}

# build_own IMAGE FOLDER: one of our own connectors, a Dockerfile and what it copies.
build_own() {
    local digest folder=$here/$2
    digest=$(inputs "$BASE" "${1##*:}" -- "$folder"/Dockerfile "$folder"/*.py)
    current "$1" "$digest" && return
    say "Building $1"
    build "$1" "$digest" "$folder" "$folder/Dockerfile"
}

# build_service IMAGE FOLDER: a service of the stack, from Debian's packages.
build_service() {
    local digest folder=$here/../stack/$2
    digest=$(inputs "$BASE" "${1##*:}" -- "$folder"/*)
    current "$1" "$digest" && return
    say "Building $1"
    build "$1" "$digest" "$folder" "$folder/Dockerfile" host
}

docker version >/dev/null 2>&1 || die "No Docker engine answers: start one, or see .ci/run."
build_base
build_pypi "$FAKER_IMAGE" source_faker.run "airbyte-source-faker==$FAKER_VERSION"
build_pypi "$MANIFEST_IMAGE" airbyte_cdk.cli.source_declarative_manifest._run "airbyte-cdk==$MANIFEST_VERSION"
# genson has no wheel; it is pure Python.
build_pypi "$FILE_IMAGE" source_file.run "airbyte-source-file==$FILE_VERSION" --no-binary genson
build_own "$STANDIN_IMAGE" source-standin
build_own "$CHAOS_IMAGE" source-chaos
build_own "$LEDGER_IMAGE" source-ledger
build_service "$POSTGRES_IMAGE" postgres
build_service "$HAPROXY_IMAGE" haproxy
say "Images: $FAKER_IMAGE $MANIFEST_IMAGE $FILE_IMAGE $STANDIN_IMAGE $CHAOS_IMAGE $LEDGER_IMAGE" \
    "$POSTGRES_IMAGE $HAPROXY_IMAGE"
