{{- define "mirage.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "mirage.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "mirage.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "mirage.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "mirage.selector" -}}
app.kubernetes.io/name: {{ include "mirage.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mirage.labels" -}}
{{ include "mirage.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "mirage.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{/* The Secret and its key that hold the Redis URL. */}}
{{- define "mirage.redisSecret" -}}
{{- if .Values.valkey.enabled -}}
{{- .Values.valkey.existingSecret | default (printf "%s-valkey" (include "mirage.fullname" .)) -}}
{{- else -}}
{{- .Values.redis.existingSecret | default (printf "%s-redis" (include "mirage.fullname" .)) -}}
{{- end -}}
{{- end -}}

{{/* What is set for both processes, beside the ConfigMap. */}}
{{- define "mirage.env" -}}
- name: MIRAGE_REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ include "mirage.redisSecret" . }}, key: url}
{{- with .Values.webhooks.existingSecret }}
- name: MIRAGE_WEBHOOK_SECRET
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: webhook-secret}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every pod of ours has in common. enableServiceLinks: a Service called mirage-... would
become a variable MIRAGE_..., which is no setting, and an unknown setting is fatal. */}}
{{- define "mirage.pod" -}}
serviceAccountName: {{ include "mirage.fullname" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "mirage.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "mirage.spread" -}}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "mirage.selector" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
  {{- end }}
{{- end -}}

{{- define "mirage.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Worlds: a shared volume, unless they lie in a bucket. */}}
{{- define "mirage.volumes" -}}
- name: data
  {{- if .Values.store.url }}
  emptyDir: {}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ .Values.store.existingClaim | default (printf "%s-worlds" (include "mirage.fullname" .)) }}
  {{- end }}
- name: tmp
  emptyDir: {}
{{- end -}}
