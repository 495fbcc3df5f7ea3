{{/*
The name of an object, for example "prod-llava-serve-server". Takes (list $ SUFFIX); the suffix can be empty.

A name has at most 52 characters: Kubernetes adds 11 to the name of a StatefulSet, and KEDA adds 9 to the name of a
ScaledObject, both in labels with at most 63. In a longer name, a hash replaces the end of the part before the suffix,
so that the objects of different releases have different names.
*/}}
{{- define "llava.name" -}}
{{- $root := index . 0 -}}
{{- $suffix := ternary (printf "-%s" (index . 1)) "" (ne (index . 1) "") -}}
{{- $chart := default $root.Chart.Name $root.Values.nameOverride -}}
{{- $name := $root.Release.Name -}}
{{- if not (contains $chart $name) -}}
{{- $name = printf "%s-%s" $name $chart -}}
{{- end -}}
{{- if gt (add (len $name) (len $suffix)) 52 -}}
{{- $start := $name | trunc (int (sub 43 (len $suffix))) | trimSuffix "-" -}}
{{- $name = printf "%s-%s" $start ($name | sha256sum | trunc 8) -}}
{{- end -}}
{{- printf "%s%s" $name $suffix -}}
{{- end }}

{{/* The labels of all objects. */}}
{{- define "llava.labels" -}}
app.kubernetes.io/name: llava-serve
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The labels that select the pods of a component. Takes (dict "root" $ "component" NAME). */}}
{{- define "llava.selector" -}}
app.kubernetes.io/name: llava-serve
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The models to serve, as JSON: each with the defaults of `worker`, keyed by name. */}}
{{- define "llava.models" -}}
{{- $models := dict -}}
{{- range $key, $model := .Values.models | default (dict "tiny" dict) -}}
{{- $merged := mergeOverwrite (deepCopy $.Values.worker) (deepCopy ($model | default dict)) -}}
{{- $own := $model | default dict -}}
{{- range $name := list "modelVolume" "strategy" -}}
{{- if hasKey $own $name -}}
{{- $_ := set $merged $name (get $own $name) -}}
{{- end -}}
{{- end -}}
{{- if and $own.hub $own.hub.cacheVolume -}}
{{- $_ := set $merged.hub "cacheVolume" $own.hub.cacheVolume -}}
{{- end -}}
{{- if eq ($merged.strategy.type | default "") "Recreate" -}}
{{- $_ := set $merged "strategy" (dict "type" "Recreate") -}}
{{- end -}}
{{- $_ := set $merged "servedName" ($merged.servedName | default $key) -}}
{{- $_ := set $models $key $merged -}}
{{- end -}}
{{- $models | toJson -}}
{{- end }}

{{/* The names of all models in requests, sorted, as JSON. */}}
{{- define "llava.servedNames" -}}
{{- $names := list -}}
{{- range $model := include "llava.models" . | fromJson -}}
{{- $names = append $names $model.servedName -}}
{{- end -}}
{{- $names | sortAlpha | uniq | toJson -}}
{{- end }}

{{/* The names of the models that scale to zero, separated by commas. */}}
{{- define "llava.onDemandModels" -}}
{{- $names := list -}}
{{- range $model := include "llava.models" . | fromJson -}}
{{- if and $model.scaling.enabled (eq (int $model.scaling.minReplicas) 0) -}}
{{- $names = append $names $model.servedName -}}
{{- end -}}
{{- end -}}
{{- $names | sortAlpha | uniq | join "," -}}
{{- end }}

{{/* The name of the Secret with the Redis URLs and passwords. */}}
{{- define "llava.redisSecret" -}}
{{- .Values.redis.existingSecret | default (include "llava.name" (list . "redis")) -}}
{{- end }}
