{{/* The prefix of the names of all objects of the release. */}}
{{- define "llmsafespace.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels of all objects; call with (list $ "component"). */}}
{{- define "llmsafespace.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{ include "llmsafespace.selector" . }}
{{- end -}}

{{/* Labels that select the pods of a component. */}}
{{- define "llmsafespace.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* The image of one of our programs or runtimes; call with (list $ "gateway"). */}}
{{- define "llmsafespace.image" -}}
{{- $image := (index . 0).Values.image -}}
{{ printf "%s/llmsafespace-%s:%s" (trimSuffix "/" $image.registry) (index . 1) $image.tag }}
{{- end -}}

{{/* All namespaces of sandboxes and pools, as a JSON list. */}}
{{- define "llmsafespace.namespaces" -}}
{{- concat (keys .Values.namespaces.sandboxes) .Values.namespaces.pools | uniq | sortAlpha | toJson -}}
{{- end -}}

{{- define "llmsafespace.keysSecret" -}}
{{- .Values.keys.existingSecret | default (printf "%s-keys" (include "llmsafespace.fullname" .)) -}}
{{- end -}}

{{- define "llmsafespace.adminKeySecret" -}}
{{- .Values.gateway.adminKey.existingSecret | default (printf "%s-admin-key" (include "llmsafespace.fullname" .)) -}}
{{- end -}}

{{/* The name of a PriorityClass, or nothing; call with (list $ "warm"). A class is immutable: its name has the value. */}}
{{- define "llmsafespace.priorityClass" -}}
{{- $root := index . 0 -}}
{{- $classes := $root.Values.sandboxes.priorityClasses -}}
{{- if $classes.create -}}
{{- printf "%s-%s-%d" (include "llmsafespace.fullname" $root) (index . 1) (int (get $classes (index . 1))) -}}
{{- end -}}
{{- end -}}

{{/* The public URL of the gateway. */}}
{{- define "llmsafespace.gatewayUrl" -}}
{{- $gateway := .Values.gateway -}}
{{- if $gateway.url -}}
{{- $gateway.url -}}
{{- else if $gateway.ingress.enabled -}}
{{- ternary "https" "http" (ne $gateway.ingress.tlsSecret "") }}://{{ $gateway.ingress.host -}}
{{- else -}}
http://{{ include "llmsafespace.fullname" . }}-gateway.{{ .Release.Namespace }}.svc:{{ $gateway.service.port }}
{{- end -}}
{{- end -}}

{{/* "true" if the gateway keeps its SQLite on a volume. Without a cluster (helm template), assume a storage class. */}}
{{- define "llmsafespace.gatewayVolume" -}}
{{- $persistence := .Values.gateway.persistence -}}
{{- if not .Values.gateway.database.existingSecret -}}
{{- if ne (toString $persistence.enabled) "auto" -}}
{{- if $persistence.enabled }}true{{ end -}}
{{- else -}}
{{- $there := lookup "v1" "PersistentVolumeClaim" .Release.Namespace (printf "%s-gateway" (include "llmsafespace.fullname" .)) -}}
{{- $blind := not (lookup "v1" "Namespace" "" "kube-system") -}}
{{- $default := false -}}
{{- range (lookup "storage.k8s.io/v1" "StorageClass" "" "").items -}}
{{- if eq (dig "metadata" "annotations" "storageclass.kubernetes.io/is-default-class" "" .) "true" -}}
{{- $default = true -}}
{{- end -}}
{{- end -}}
{{- if or $there $blind $persistence.storageClass $default }}true{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Common to all pods of the release: Pod Security `restricted`, and no service account token by default. */}}
{{- define "llmsafespace.pod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "llmsafespace.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Scheduling of a component's pods; call with (list $ "component"). */}}
{{- define "llmsafespace.placement" -}}
{{- $values := get (index . 0).Values (index . 1) -}}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- if $values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml $values.topologySpreadConstraints | nindent 2 }}
{{- else }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "llmsafespace.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{/* The labels of a component's pods; ours cannot be overwritten. */}}
{{- define "llmsafespace.podLabels" -}}
{{- $values := get (index . 0).Values (index . 1) -}}
{{- merge (include "llmsafespace.labels" . | fromYaml) $values.podLabels | toYaml -}}
{{- end -}}

{{/* Restarts the pods when a configuration has changed that they read only at start. */}}
{{- define "llmsafespace.configChecksum" -}}
checksum/config: {{ include (print .Template.BasePath "/config.yaml") . | sha256sum }}
{{- end -}}

{{/* Bind the Role of a component in a namespace to its account; call with (list $ "component" "namespace"). */}}
{{- define "llmsafespace.roleBinding" -}}
{{- $root := index . 0 -}}
{{- $name := printf "%s-%s" (include "llmsafespace.fullname" $root) (index . 1) -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ index . 2 | quote }}
  labels: {{- include "llmsafespace.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ $name }}, namespace: {{ $root.Release.Namespace | quote }}}
{{- end -}}

{{/* Bind the ClusterRole of a component to its account; call with (list $ "component"). */}}
{{- define "llmsafespace.clusterRoleBinding" -}}
{{- $root := index . 0 -}}
{{- $name := printf "%s-%s" (include "llmsafespace.fullname" $root) (index . 1) -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels: {{- include "llmsafespace.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ $name }}, namespace: {{ $root.Release.Namespace | quote }}}
{{- end -}}

{{/* The pods of a component as a NetworkPolicy's peer; call with (list $ "component"). */}}
{{- define "llmsafespace.peer" -}}
namespaceSelector:
  matchLabels: {kubernetes.io/metadata.name: {{ (index . 0).Release.Namespace | quote }}}
podSelector:
  matchLabels: {{- include "llmsafespace.selector" . | nindent 4 }}
{{- end -}}

{{/* The pods of all namespaces except those of sandboxes, as NetworkPolicy peers. A namespace keeps its label when it leaves the values. */}}
{{- define "llmsafespace.trustedNamespaces" -}}
- namespaceSelector:
    matchExpressions:
      - {key: kubernetes.io/metadata.name, operator: NotIn, values: {{ include "llmsafespace.namespaces" . }}}
      - {key: llmsafespace.dev/sandboxes, operator: DoesNotExist}
{{- end -}}
