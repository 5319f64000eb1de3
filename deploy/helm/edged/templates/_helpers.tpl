{{- define "edged.name" -}}
{{- printf "%s" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- define "edged.selector" -}}
app.kubernetes.io/name: edged
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- define "edged.labels" -}}
{{ include "edged.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
