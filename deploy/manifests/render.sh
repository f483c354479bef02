#!/bin/sh
# Renders the plain manifests from the chart: deploy/manifests/render.sh [DIRECTORY]
# Needs helm 3, in the PATH or as $HELM. The tests compare the result with what is committed.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
target=${1:-$here}
for part in control node gateway network-policy; do
  {
    if [ "$part" = node ]; then
      echo "# A trial: the node proxy has not been tested on real nodes yet (docs/mesh/kubernetes.md)."
    fi
    echo "# Made by deploy/manifests/render.sh from deploy/helm/portcullis: change that, not this."
    "${HELM:-helm}" template portcullis "$here/../helm/portcullis" --namespace portcullis --kube-version 1.32.0 \
      --set-string 'image=${PORTCULLIS_IMAGE}' --set node.enabled=true,networkPolicy.enabled=true --show-only "templates/$part.yaml" |
      sed -e '/^# Source: /d' -e 's/[[:space:]]*$//' -e '/^ *app.kubernetes.io\/managed-by: Helm$/d'
  } > "$target/$part.yaml"
done
