#!/bin/sh
# Renders the plain manifests from the chart, and the chart with every option (test/data/chart):
#   deploy/manifests/render.sh [DIRECTORY]
# Needs helm 3, in the PATH or as $HELM. The tests compare the result with what is committed, where there is helm, and check
# what is committed everywhere.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
target=${1:-$here}
data=$here/../../test/data/chart
values=control.policiesConfigMap=portcullis-policies,node.enabled=true,networkPolicy.enabled=true
render() {
  "${HELM:-helm}" template portcullis "$here/../helm/portcullis" --namespace portcullis --kube-version 1.32.0 "$@" |
    sed -e '/^# Source: /d' -e 's/[[:space:]]*$//' -e '/^ *app.kubernetes.io\/managed-by: Helm$/d'
}
for part in control node gateway network-policy; do
  {
    if [ "$part" = node ]; then
      echo "# A trial: the node proxy has been tested with one real kubelet only (docs/mesh/kubernetes.md)."
    fi
    echo "# Made by deploy/manifests/render.sh from deploy/helm/portcullis: change that, not this."
    render --set-string 'image=${PORTCULLIS_IMAGE}' --set "$values" --show-only "templates/$part.yaml"
  } > "$target/$part.yaml"
done
render --values "$data/values.yaml" > "${1:-$data}/every-option.yaml"
