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
{{- $servers := include "llava.redisServers" .server -}}
{{- $workers := include "llava.redisServers" .worker -}}
{{- if and .enabled (ne $servers $workers) (eq (splitList " " $servers | sortAlpha | toJson) (splitList " " $workers | sortAlpha | toJson)) -}}
{{- fail (printf "redis.queueUrls.server contains the servers %s, but redis.queueUrls.worker contains them in the order %s, so requests would not be run. Use the same order." $servers $workers) -}}
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

{{/* Check the memory of Valkey, which needs as much again as its data while it rewrites the append-only file. */}}
{{- define "llava.checkValkey" -}}
{{- with .Values.valkey -}}
{{- if .enabled -}}
{{- include "llava.checkResources" (list "valkey.resources" .resources) -}}
{{- $limit := get (.resources.limits | default dict) "memory" -}}
{{- $suffixes := dict "b" "" "kb" "Ki" "mb" "Mi" "gb" "Gi" -}}
{{- $unit := regexFind "[a-z]+$" .maxMemory -}}
{{- $size := include "llava.quantity" (list "valkey.maxMemory" (printf "%s%s" (trimSuffix $unit .maxMemory) (get $suffixes $unit))) -}}
{{- if and $limit (gt (mulf 2 ($size | float64)) (include "llava.quantity" (list "valkey.resources.limits.memory" $limit) | float64)) -}}
{{- fail (printf "valkey.maxMemory is %s, more than half of valkey.resources.limits.memory, %v. Decrease valkey.maxMemory, or increase the limit." .maxMemory $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Check that the servers accept the host names of the routes. */}}
{{- define "llava.checkHosts" -}}
{{- $allowed := .Values.server.allowedHosts -}}
{{- $hosts := dict -}}
{{- if .Values.ingress.enabled -}}
{{- $hosts = dict .Values.ingress.host "ingress.host" -}}
{{- end -}}
{{- if .Values.gateway.enabled -}}
{{- range .Values.gateway.hostnames -}}
{{- $_ := set $hosts . "gateway.hostnames" -}}
{{- end -}}
{{- end -}}
{{- range $host, $path := $hosts -}}
{{- $isAllowed := or (not $allowed) (has "*" $allowed) (has $host $allowed) -}}
{{- range $allowed -}}
{{- $isAllowed = or $isAllowed (and (hasPrefix "*." .) (hasSuffix (trimPrefix "*" .) $host)) -}}
{{- end -}}
{{- if not $isAllowed -}}
{{- fail (printf "%s is %q, but server.allowedHosts does not contain it, so the servers would reject all requests. Add it to server.allowedHosts." $path $host) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Check that all pods can share the volume for images. */}}
{{- define "llava.checkImageVolume" -}}
{{- range $type, $volume := .Values.imageStore.volume -}}
{{- if has $type (list "configMap" "downwardAPI" "emptyDir" "ephemeral" "image" "projected" "secret") -}}
{{- fail (printf "imageStore.volume is of the type %s, which servers and workers cannot share. Use a volume that all of them can write to, such as persistentVolumeClaim." $type) -}}
{{- end -}}
{{- if and (kindIs "map" $volume) $volume.readOnly -}}
{{- fail (printf "imageStore.volume.%s.readOnly is true, but servers and workers must be able to write to the volume. Remove readOnly." $type) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Check that models with the same name in requests are the same model. */}}
{{- define "llava.checkServedNames" -}}
{{- $found := dict -}}
{{- range $key, $model := include "llava.models" . | fromJson -}}
{{- $other := get $found $model.servedName | default dict -}}
{{- if and $other (ne $other.model $model.model) -}}
{{- fail (printf "models.%s and models.%s have the same servedName, %q, but different models: %s and %s. Use different names." $other.key $key $model.servedName $other.model $model.model) -}}
{{- end -}}
{{- $_ := set $found $model.servedName (dict "key" $key "model" $model.model) -}}
{{- end -}}
{{- end }}

{{/* Check where a model is loaded from. Takes (list PATH MODEL). */}}
{{- define "llava.checkModelFiles" -}}
{{- $path := index . 0 -}}
{{- $model := index . 1 -}}
{{- if and (hasPrefix "/" $model.model) (not (hasPrefix "/models/" $model.model)) -}}
{{- fail (printf "%s.model is %q, but only %s.modelVolume contains models, and it is mounted at /models. Set %s.model to a folder under /models." $path $model.model $path $path) -}}
{{- end -}}
{{- if and (hasPrefix "/" $model.model) (not $model.modelVolume) -}}
{{- fail (printf "%s.model is %q, but %s.modelVolume is not set. Set it to the volume that contains the model." $path $model.model $path) -}}
{{- end -}}
{{- end }}

{{/* Check a model with the defaults of `worker`. Takes (list PATH MODEL). */}}
{{- define "llava.checkModel" -}}
{{- $path := index . 0 -}}
{{- $model := index . 1 -}}
{{- if and (contains "/" $model.model) (not (hasPrefix "/" $model.model)) (not $model.hub.enabled) -}}
{{- fail (printf "%s.model is %q, a model on the Hugging Face Hub, but %s.hub.enabled is false. Set %s.hub.enabled to true, or set %s.model to a folder under /models." $path $model.model $path $path $path) -}}
{{- end -}}
{{- include "llava.checkModelFiles" . -}}
{{- include "llava.checkResources" (list (printf "%s.resources" $path) $model.resources) -}}
{{- range $kind, $values := $model.resources -}}
{{- if hasKey ($values | default dict) $model.gpuResource -}}
{{- fail (printf "%s.resources.%s contains %s, which the chart sets. Remove it, and set %s.gpus instead." $path $kind $model.gpuResource $path) -}}
{{- end -}}
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
{{- $slots := get ($model.env | default dict) "LLAVA_MAX_NUM_SEQUENCES" | default 16 | include "llava.text" -}}
{{- if not (regexMatch "^[1-9][0-9]*$" $slots) -}}
{{- fail (printf "%s.env.LLAVA_MAX_NUM_SEQUENCES is %q. Set it to a whole number of at least 1." $path $slots) -}}
{{- end -}}
{{- $slots = int $slots -}}
{{- if ge (int $model.scaling.runningRequestsPerWorker) (max $slots 2) -}}
{{- fail (printf "%s.scaling.runningRequestsPerWorker is %d, but a worker runs at most %d requests, so running requests would never add a worker. Set it to about %d, or increase LLAVA_MAX_NUM_SEQUENCES in %s.env." $path (int $model.scaling.runningRequestsPerWorker) $slots (max 1 (div (mul $slots 3) 4)) $path) -}}
{{- end -}}
{{- end -}}
{{- end }}
