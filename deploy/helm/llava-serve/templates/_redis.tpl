{{/* The name of the Secret with the Redis URLs and passwords. */}}
{{- define "llava.redisSecret" -}}
{{- .Values.redis.existingSecret | default (include "llava.name" (list . "redis")) -}}
{{- end }}

{{/* The hosts, ports and databases of Redis URLs, without credentials and options, separated by spaces. */}}
{{- define "llava.redisServers" -}}
{{- $servers := list -}}
{{- range regexFindAll "\\S+" . -1 -}}
{{- $servers = append $servers (regexReplaceAll "^[^:]*://(.*@)?|[?].*$" . "") -}}
{{- end -}}
{{- join " " $servers -}}
{{- end }}

{{/* The keys of the Secret with the URLs of a role. Takes (list $ ROLE PASSWORD); the password is that of Valkey. */}}
{{- define "llava.redisUrls" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $redis := $root.Values.redis -}}
{{- $images := $root.Values.imageStore.redis -}}
{{- $url := get $redis (printf "%sUrl" $role) -}}
{{- if $root.Values.valkey.enabled -}}
{{- $url = printf "redis://%s:%s@%s:6379/0" $role (index . 2) (include "llava.name" (list $root "valkey")) -}}
{{- end -}}
{{ $role }}_redis_url: {{ $url | quote }}
{{- if and $redis.queueUrls.enabled (ne $role "admin") }}
{{ $role }}_queue_urls: {{ get $redis.queueUrls $role | quote }}
{{- end }}
{{- if and $images.enabled (ne $role "admin") }}
{{ $role }}_image_store: {{ get $images (printf "%sUrl" $role) | quote }}
{{- end }}
{{- end }}

{{/*
The annotations of a role's pods: those in the values, and a digest of the Redis URLs, because programs read them only
when they start. Takes (list $ ROLE ANNOTATIONS).

The generated passwords are not included, because Helm can read them only in the cluster. URLs in the values can contain
passwords that are easy to guess, and more people can read annotations than Secrets, so the digest is slow to compute.
*/}}
{{- define "llava.podAnnotations" -}}
{{- $root := index . 0 -}}
{{- $annotations := index . 2 | default dict -}}
{{- if not $root.Values.redis.existingSecret -}}
{{- $urls := include "llava.redisUrls" (list $root (index . 1) "") -}}
{{- $digest := derivePassword 1 "maximum" $urls $root.Release.Namespace (include "llava.redisSecret" $root) | sha256sum -}}
{{- $annotations = merge (deepCopy $annotations) (dict "checksum/redis" $digest) -}}
{{- end -}}
{{- with $annotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end }}
