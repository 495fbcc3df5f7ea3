{{/* The environment variables of the queue, which must be the same for all servers and workers. */}}
{{- define "llava.queueEnv" -}}
- { name: LLAVA_REDIS_URL_FILE, value: /run/secrets/redis/redis_url }
{{- if .Values.redis.queueUrls.enabled }}
- { name: LLAVA_QUEUE_URLS_FILE, value: /run/secrets/redis/queue_urls }
{{- end }}
{{- with .Values.redis.queueShards }}
- { name: LLAVA_QUEUE_SHARDS, value: {{ . | quote }} }
{{- end }}
{{- if .Values.imageStore.redis.enabled }}
- { name: LLAVA_IMAGE_STORE_FILE, value: /run/secrets/redis/image_store }
{{- else if .Values.imageStore.volume }}
- { name: LLAVA_IMAGE_STORE, value: file:///images }
{{- end }}
{{- end }}

{{/* The variables that the chart sets for the servers. */}}
{{- define "llava.serverEnv" -}}
{{- $server := .Values.server -}}
{{- include "llava.queueEnv" . }}
- { name: LLAVA_HOST, value: "0.0.0.0" }
- { name: LLAVA_PORT, value: "8000" }
# The admin port requires no API key. Only the network policy's operators can reach it.
- { name: LLAVA_ADMIN_HOST, value: "0.0.0.0" }
- { name: LLAVA_ADMIN_PORT, value: "9000" }
- { name: LLAVA_AUTH, value: {{ $server.auth | quote }} }
- { name: LLAVA_QUEUE_TIMEOUT_S, value: {{ $server.queueTimeoutSeconds | quote }} }
- { name: LLAVA_REQUEST_TIMEOUT_S, value: {{ $server.requestTimeoutSeconds | quote }} }
- { name: LLAVA_DRAIN_TIMEOUT_S, value: {{ $server.drainSeconds | quote }} }
{{- with include "llava.onDemandModels" . }}
- { name: LLAVA_ON_DEMAND_MODELS, value: {{ . | quote }} }
{{- end }}
{{- with $server.allowedHosts }}
- { name: LLAVA_ALLOWED_HOSTS, value: {{ append . (include "llava.name" (list $ "server")) | join "," | quote }} }
{{- end }}
{{- with $server.imageHosts }}
- { name: LLAVA_IMAGE_HOSTS, value: {{ join "," . | quote }} }
{{- end }}
{{- if $server.apiKeysSecret }}
- { name: LLAVA_API_KEYS_FILE, value: /run/secrets/keys/api_keys }
{{- end }}
{{- end }}

{{/* The variables that the chart sets for the workers of a model. Takes (list $ MODEL). */}}
{{- define "llava.workerEnv" -}}
{{- $model := index . 1 -}}
{{- include "llava.queueEnv" (index . 0) }}
- { name: LLAVA_MODEL, value: {{ $model.model | quote }} }
- { name: LLAVA_SERVED_MODEL_NAME, value: {{ $model.servedName | quote }} }
- { name: LLAVA_DRAIN_TIMEOUT_S, value: {{ $model.drainSeconds | quote }} }
{{- if $model.gpus }}
- { name: LLAVA_DEVICE, value: cuda }
- { name: LLAVA_TENSOR_PARALLEL, value: {{ $model.gpus | quote }} }
{{- end }}
{{- if not $model.hub.enabled }}
- { name: HF_HUB_OFFLINE, value: "1" }
{{- else if $model.hub.tokenSecret }}
- name: HF_TOKEN
  valueFrom: { secretKeyRef: { name: {{ $model.hub.tokenSecret }}, key: token } }
{{- end }}
{{- end }}

{{/*
The variables of a container: those that the chart sets, and those in the values. Takes (list PATH ENV VALUES).
Kubernetes rejects a container with two variables of the same name. Helm would write numbers of one million and more as
1e+06.
*/}}
{{- define "llava.env" -}}
{{- $path := index . 0 -}}
{{- $values := index . 2 | default dict -}}
{{- range index . 1 | fromYamlArray -}}
{{- if hasKey $values .name -}}
{{- fail (printf "%s contains %s, which the chart sets from other values. Remove it, and use those values instead." $path .name) -}}
{{- end -}}
{{- end -}}
{{- index . 1 | trim }}
{{- range $name, $value := $values }}
- name: {{ $name }}
  value: {{ ternary (int64 $value | toString) ($value | toString) (and (kindIs "float64" $value) (eq (toString $value) (toString (float64 (int64 $value))))) | quote }}
{{- end }}
{{- end }}
