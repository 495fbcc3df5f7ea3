{{/* The prefix of all object names, for example "prod-llava-serve". */}}
{{- define "llava.name" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
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
{{- .Values.redis.existingSecret | default (printf "%s-redis" (include "llava.name" .)) -}}
{{- end }}
