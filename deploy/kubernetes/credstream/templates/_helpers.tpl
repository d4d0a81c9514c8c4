{{- define "credstream.labels" -}}
app.kubernetes.io/name: credstream
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "credstream.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "credstream.pod.security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "credstream.secret" -}}
valueFrom:
  secretKeyRef: {name: {{ index . 0 }}, key: {{ index . 1 }}}
{{- end }}

{{- define "credstream.env" -}}
{{- if .Values.secrets.admin }}
- name: CREDSTREAM_ADMIN_KEY
  {{- include "credstream.secret" (list .Values.secrets.admin "admin-key") | nindent 2 }}
{{- end }}
{{- if .Values.secrets.tls }}
- {name: CREDSTREAM_TLS_CERT, value: /tls/tls.crt}
- {name: CREDSTREAM_TLS_KEY, value: /tls/tls.key}
{{- end }}
{{- if .Values.behindTLSProxy }}
- {name: CREDSTREAM_BEHIND_TLS_PROXY, value: "true"}
{{- end }}
{{- with .Values.publicURL }}
- {name: CREDSTREAM_PUBLIC_URL, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .Values.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "credstream.container" -}}
name: credstream
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "credstream.security" . | nindent 2 }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
# The process is alive while it starts; rebuilding the read models takes a while.
livenessProbe:
  httpGet: {path: /healthz, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne .Values.secrets.tls "") }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne .Values.secrets.tls "") }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
