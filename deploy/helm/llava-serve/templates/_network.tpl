{{/* An egress rule for the public internet, without the networks of the cluster. */}}
{{- define "llava.publicEgress" -}}
to:
  - ipBlock: { cidr: 0.0.0.0/0, except: {{ toJson .Values.networkPolicy.privateCidrs }} }
  - ipBlock: { cidr: "::/0", except: ["fc00::/7", "fe80::/10"] }
ports:
  - { port: 443, protocol: TCP }
{{- end }}

{{/* Egress rules for the queue and DNS. */}}
{{- define "llava.queueEgress" -}}
{{- with .Values.networkPolicy.dns }}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    - { port: 53, protocol: UDP }
    - { port: 53, protocol: TCP }
{{- end }}
{{- if .Values.valkey.enabled }}
- to:
    - podSelector:
        matchLabels:
          {{- include "llava.selector" (dict "root" . "component" "valkey") | nindent 10 }}
  ports:
    - { port: 6379, protocol: TCP }
{{- end }}
{{- if include "llava.hasExternalRedis" . }}
- to:
    {{- toYaml .Values.redis.peers | nindent 4 }}
  ports:
    {{- range .Values.redis.ports }}
    - { port: {{ . }}, protocol: TCP }
    {{- end }}
{{- end }}
{{- end }}
