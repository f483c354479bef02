{{/* Name that everything begins with. */}}
{{- define "portcullis.name" -}}
{{- default "portcullis" .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The image, or an error that says what to do. */}}
{{- define "portcullis.image" -}}
{{- required "image must be set: build it from deploy/Dockerfile, push it to your registry, and give --set image=REGISTRY/NAME:TAG" .Values.image -}}
{{- end -}}

{{/* Labels of one component: (dict "root" $ "component" "node"). */}}
{{- define "portcullis.labels" -}}
{{ include "portcullis.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "portcullis.selector" -}}
app.kubernetes.io/name: {{ include "portcullis.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* What every container that needs no rights gets: the "restricted" Pod Security Standard. */}}
{{- define "portcullis.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "portcullis.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
# Or the kubelet opens the CA's keys to the group each time that it mounts the volume, and the CA refuses such files.
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "portcullis.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- end -}}

{{/* Where a component runs: its values. */}}
{{- define "portcullis.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- end -}}

{{/* Audience of the tokens that node proxies show to the control plane. */}}
{{- define "portcullis.audience" -}}portcullis{{- end -}}

{{/* The control plane's configuration. */}}
{{- define "portcullis.controlConfig" -}}
{{- if .Values.control.config -}}
{{ .Values.control.config }}
{{- else -}}
{{- $name := printf "%s-control" (include "portcullis.name" .) }}
{{- $host := printf "%s.%s.svc" $name .Release.Namespace -}}
trustDomain: {{ .Values.mesh.trustDomain }}
clusterDomain: {{ .Values.mesh.clusterDomain }}
listen: "0.0.0.0:{{ .Values.control.port }}"
serverNames: [{{ $host }}.{{ .Values.mesh.clusterDomain }}, {{ $host }}, {{ $name }}.{{ .Release.Namespace }}, {{ $name }}]
serviceAccount: {{ .Release.Namespace }}/{{ $name }}
admin: {address: "0.0.0.0:{{ .Values.control.adminPort }}"}
ca:
  directory: /var/lib/portcullis/ca
  {{- if .Values.control.caSecret }}
  files:
    rootCertificate: /etc/portcullis/ca/root.pem
    certificate: /etc/portcullis/ca/intermediate.pem
    key: /etc/portcullis/ca/intermediate-key.pem
  {{- end }}
source:
  kubernetes: {clusterId: {{ .Values.mesh.clusterId | quote }}}
  {{- if .Values.control.policiesConfigMap }}
  directory: /etc/portcullis/mesh
  {{- end }}
attestation:
  joinTokens: off
  kubernetes:
    audience: {{ include "portcullis.audience" . }}
    nodeAccounts: [{{ .Release.Namespace }}/{{ include "portcullis.name" . }}-node]
{{- end -}}
{{- end -}}

{{/* The node proxy's configuration. */}}
{{- define "portcullis.nodeConfig" -}}
{{- if .Values.node.config -}}
{{ .Values.node.config }}
{{- else -}}
trustDomain: {{ .Values.mesh.trustDomain }}
node: "${NODE_NAME}"
admin: {address: "127.0.0.1:{{ .Values.node.adminPort }}"}
controlPlane:
  address: {{ include "portcullis.name" . }}-control.{{ .Release.Namespace }}.svc.{{ .Values.mesh.clusterDomain }}:{{ .Values.control.port }}
  roots: /etc/portcullis-roots/roots.pem
serviceAccountToken: {file: /var/run/secrets/portcullis/token}
stateDirectory: {{ .Values.node.stateDirectory }}/node
mode: {{ .Values.node.mode }}
{{- end -}}
{{- end -}}
