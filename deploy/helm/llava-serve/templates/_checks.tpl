{{/* Whether pods connect to another Redis than the release's Valkey: "true" or empty. */}}
{{- define "llava.hasExternalRedis" -}}
{{- if or .Values.redis.queueUrls.enabled .Values.imageStore.redis.enabled (not .Values.valkey.enabled) -}}
true
{{- end -}}
{{- end }}

{{/* Check the URLs of the queue and of the image store, and the network peers. */}}
{{- define "llava.checkQueue" -}}
{{- $redis := .Values.redis -}}
{{- $images := .Values.imageStore.redis -}}
{{- if not $redis.existingSecret -}}
{{- if and (not .Values.valkey.enabled) (not (and $redis.serverUrl $redis.workerUrl)) -}}
{{- fail "Set redis.existingSecret, or redis.serverUrl and redis.workerUrl, if valkey.enabled is false." -}}
{{- end -}}
{{- with $redis.queueUrls -}}
{{- if and .enabled (not (and .server .worker)) -}}
{{- fail "Set redis.existingSecret, or redis.queueUrls.server and redis.queueUrls.worker, if redis.queueUrls.enabled is true." -}}
{{- end -}}
{{- $number := len (regexFindAll "\\S+" .server -1) -}}
{{- if and .enabled (ne $number (len (regexFindAll "\\S+" .worker -1))) -}}
{{- fail (printf "redis.queueUrls.server contains %d URLs, but redis.queueUrls.worker contains %d. Set both to URLs of the same servers in the same order." $number (len (regexFindAll "\\S+" .worker -1))) -}}
{{- end -}}
{{- if and .enabled $redis.queueShards (lt (int $redis.queueShards) $number) -}}
{{- fail (printf "redis.queueShards is %d, but redis.queueUrls contains %d URLs. Set it to at least %d, or to 0 for one shard per URL." (int $redis.queueShards) $number $number) -}}
{{- end -}}
{{- end -}}
{{- if and $images.enabled (not (and $images.serverUrl $images.workerUrl)) -}}
{{- fail "Set redis.existingSecret, or imageStore.redis.serverUrl and imageStore.redis.workerUrl, if imageStore.redis.enabled is true." -}}
{{- end -}}
{{- end -}}
{{- if not (include "llava.hasExternalRedis" .) -}}
{{- $defaults := (.Files.Get "files/defaults.yaml" | fromYaml).redis -}}
{{- range $name := list "peers" "ports" "tlsSecret" -}}
{{- if ne (get $redis $name | toJson) (get $defaults $name | toJson) -}}
{{- fail (printf "redis.%s has no effect, because all pods connect only to the Valkey of this release. Set valkey.enabled to false, or set redis.queueUrls or imageStore.redis, or remove redis.%s." $name $name) -}}
{{- end -}}
{{- end -}}
{{- else if and .Values.networkPolicy.enabled (not $redis.peers) -}}
{{- fail "Set redis.peers to the addresses of Redis, or networkPolicy.enabled to false." -}}
{{- end -}}
{{- end }}

{{/* Check that a range of replicas is not empty. Takes (list PATH VALUES). */}}
{{- define "llava.checkReplicas" -}}
{{- $path := index . 0 -}}
{{- with index . 1 -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "%s.minReplicas is %d, but %s.maxReplicas is %d. Increase maxReplicas, or decrease minReplicas." $path (int .minReplicas) $path (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Check a model with the defaults of `worker`. Takes (list PATH MODEL). */}}
{{- define "llava.checkModel" -}}
{{- $path := index . 0 -}}
{{- $model := index . 1 -}}
{{- if and (contains "/" $model.model) (not (hasPrefix "/" $model.model)) (not $model.hub.enabled) -}}
{{- fail (printf "%s.model is %q, a model on the Hugging Face Hub, but %s.hub.enabled is false. Set %s.hub.enabled to true, or set %s.model to a folder under /models." $path $model.model $path $path $path) -}}
{{- end -}}
{{- with $model.strategy.rollingUpdate -}}
{{- $surge := toString (get . "maxSurge") -}}
{{- $unavailable := toString (get . "maxUnavailable") -}}
{{- if and (has $surge (list "0" "0%")) (has $unavailable (list "0" "0%")) -}}
{{- fail (printf "%s.strategy.rollingUpdate: maxSurge and maxUnavailable are both 0, so no worker can be replaced. Set one of them to 1." $path) -}}
{{- end -}}
{{- end -}}
{{- if $model.scaling.enabled -}}
{{- include "llava.checkReplicas" (list (printf "%s.scaling" $path) $model.scaling) -}}
{{- $slots := int (get ($model.env | default dict) "LLAVA_MAX_NUM_SEQUENCES" | default 16) -}}
{{- if ge (int $model.scaling.runningRequestsPerWorker) $slots -}}
{{- fail (printf "%s.scaling.runningRequestsPerWorker is %d, but a worker runs at most %d requests, so running requests would never add a worker. Set it to about %d, or increase LLAVA_MAX_NUM_SEQUENCES in %s.env." $path (int $model.scaling.runningRequestsPerWorker) $slots (div (mul $slots 3) 4) $path) -}}
{{- end -}}
{{- end -}}
{{- end }}
