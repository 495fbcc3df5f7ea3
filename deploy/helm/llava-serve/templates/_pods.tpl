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

{{/* A volume with one role's Redis URLs. Takes (dict "root" $ "role" NAME). */}}
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
          {{- if .root.Values.redis.queueUrls.enabled }}
          - key: {{ .role }}_queue_urls
            path: queue_urls
          {{- end }}
          {{- if .root.Values.imageStore.redis.enabled }}
          - key: {{ .role }}_image_store
            path: image_store
          {{- end }}
{{- with .root.Values.redis.tlsSecret }}
    - secret:
        name: {{ . }}
{{- end }}
{{- end }}

{{/* The volume that all servers and workers share for images. */}}
{{- define "llava.imageVolume" -}}
{{- with .Values.imageStore.volume }}
- name: images
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "llava.imageMount" -}}
{{- if .Values.imageStore.volume }}
- { name: images, mountPath: /images }
{{- end }}
{{- end }}
