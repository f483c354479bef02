#!/bin/sh
# Builds etcd and kube-apiserver for test/integration/mesh/kubernetes-cluster.test.ts from the Go module proxy:
#
#   test/support/kube-cluster/build.sh DIRECTORY [PROGRAM...]
#
# About half an hour of one core, 2 GB of memory and 5 GB of disk, once. Further programs of Kubernetes, such as kubectl or
# kube-controller-manager, are built when they are named. Then:
#
#   ETCD=DIRECTORY/etcd KUBE_APISERVER=DIRECTORY/kube-apiserver scripts/node test/run.ts kubernetes-cluster
set -eu
version=1.33.4
[ $# -gt 0 ] || {
  echo "usage: $0 DIRECTORY [PROGRAM...]" >&2
  exit 2
}
mkdir -p "$1"
target=$(cd "$1" && pwd -P)
shift

# The module holds its libraries as links into a folder that it does not have; they are modules of their own.
module=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^.*"Dir": "\(.*\)".*$/\1/p')
[ -n "$module" ] || {
  echo "$0: k8s.io/kubernetes v$version cannot be had: is Go there, and the module proxy?" >&2
  exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R "$module/." "$work"
chmod -R u+w "$work"
cd "$work"
rm -rf vendor staging go.work go.work.sum
for library in $(sed -n 's#^.*\(k8s.io/[a-z-]*\) => ./staging.*$#\1#p' go.mod); do
  go mod edit -dropreplace "$library" -require "$library@v0.${version#1.}"
done

export GOFLAGS='-mod=mod -buildvcs=false'
# What they answer when they are asked for their version, on which clients decide.
about=k8s.io/component-base/version
flags="-s -w -X $about.gitVersion=v$version -X $about.gitMajor=1 -X $about.gitMinor=33"
build() { nice -n 19 go build -p 1 -ldflags "$flags" -o "$target/" "$1"; }
for program in kube-apiserver "$@"; do build "./cmd/$program"; done
# The main package of etcd is at the root of its module.
nice -n 19 go build -p 1 -ldflags '-s -w' -o "$target/etcd" go.etcd.io/etcd/server/v3
ls -l "$target"
