#!/usr/bin/env bash
# Builds a release of the commit that is checked out, twice, in two folders, and fails unless both
# are the same, byte for byte. It builds with the VCS stamp, whatever GOFLAGS says. Writes the program, its checksum and its SBOM (CycloneDX) into a folder:
#   deploy/release.sh dist
# GOOS and GOARCH choose the platform. A tag of the commit must be v and the program's version.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:?the folder for the release}"
sbom=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.9.0

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
commit="$(git rev-parse HEAD)"
for copy in one a-longer-name/two; do
  mkdir -p "$work/$copy"
  git clone -q --no-hardlinks . "$work/$copy/src"
  git -C "$work/$copy/src" checkout -q "$commit"
  (cd "$work/$copy/src" && CGO_ENABLED=0 go build -buildvcs=true -trimpath -ldflags '-s -w -buildid=' -o "$work/$copy/credstream" ./cmd/credstream)
done
if ! cmp "$work/one/credstream" "$work/a-longer-name/two/credstream"; then
  echo "the build of $commit is not reproducible" >&2
  exit 1
fi
version="$(sed -n 's/^const Version = "\(.*\)"$/\1/p' cmd/credstream/app/serve.go)"
for tag in $(git tag --points-at HEAD 'v*'); do
  if [ "$tag" != "v$version" ]; then
    echo "the tag is $tag, but the program has version $version" >&2
    exit 1
  fi
done
if [ "${GOOS:-$(go env GOHOSTOS)}/${GOARCH:-$(go env GOHOSTARCH)}" = "$(go env GOHOSTOS)/$(go env GOHOSTARCH)" ]; then
  "$work/one/credstream" version --json | grep "\"commit\":\"$commit\"" > /dev/null || { echo "the program does not know its commit" >&2; exit 1; }
fi
mkdir -p "$out"
cp "$work/one/credstream" "$out/credstream"
(cd "$out" && sha256sum credstream > credstream.sha256)
(unset GOOS GOARCH && GOBIN="$work/bin" go install "$sbom")
"$work/bin/cyclonedx-gomod" bin -json -version "v$version" -output "$out/credstream.cdx.json" "$out/credstream"
echo "credstream $version of $commit: $(cut -d ' ' -f 1 < "$out/credstream.sha256"), reproducible"
