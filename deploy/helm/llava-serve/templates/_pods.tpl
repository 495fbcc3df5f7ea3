{{/* Pod settings that all components share. Takes (dict "root" $ "user" UID "group" GID "pod" VALUES). */}}
{{- define "llava.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .group }}
  fsGroup: {{ .group }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The security context of all containers. */}}
{{- define "llava.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* A volume with one role's Redis URL. Takes (dict "root" $ "role" NAME). */}}
{{- define "llava.redisVolume" -}}
name: redis
projected:
  defaultMode: 0440
  sources:
    - secret:
        name: {{ include "llava.redisSecret" .root }}
        items:
          - key: {{ .role }}_redis_url
            path: redis_url
{{- with .root.Values.redis.tlsSecret }}
    - secret:
        name: {{ . }}
{{- end }}
{{- end }}

{{/* Additional environment variables from a map. */}}
{{- define "llava.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
