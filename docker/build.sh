#!/usr/bin/env bash
# Builds both images with buildah, where no Docker engine runs, on a base of Debian's own packages. As root, on Debian:
#
#     apt-get install buildah debootstrap
#     docker/build.sh                                         # what follows is handed to `buildah build`, such as
#     docker/build.sh --volume /etc/ssl/certs:/etc/ssl/certs:ro  # the certificates of a proxy
#
# With Docker: docker build -f docker/Dockerfile --target worker -t eopatch-flow-worker .  (and likewise localhub)
set -euo pipefail
cd "$(dirname "$0")/.."
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
BASE=localhost/eopatch-flow-base

if ! buildah inspect --type image "$BASE" >/dev/null 2>&1; then
    root=$(mktemp -d)
    debootstrap --variant=minbase bookworm "$root"
    # as Debian's own slim images
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,info,locale}/*
    container=$(buildah from scratch)
    buildah add -q "$container" "$root" /
    buildah commit -q --rm "$container" "$BASE"
    rm -rf "$root"
fi

for target in worker localhub; do
    began=$SECONDS
    buildah build --format docker --layers -f docker/Dockerfile --build-arg BASE="$BASE" --target "$target" \
        -t "eopatch-flow-$target" "$@" .
    echo "eopatch-flow-$target was built in $((SECONDS - began)) s"
done
buildah images --filter 'reference=eopatch-flow-*'
