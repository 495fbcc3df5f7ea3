{{/* The value at a path, as JSON: {"value": VALUE}, or an empty string if there is none. Takes (list VALUES PATH). */}}
{{- define "llava.valueAt" -}}
{{- $value := index . 0 -}}
{{- range $key := splitList "." (index . 1) -}}
{{- $value = get ($value | default dict) $key -}}
{{- end -}}
{{- dict "value" $value | toJson -}}
{{- end }}

{{/* "true" if values meet the condition of a rule, else empty. Takes (list VALUES PATH RULE). */}}
{{- define "llava.isMet" -}}
{{- $value := (include "llava.valueAt" (list (index . 0) (index . 1)) | fromJson).value -}}
{{- $rule := index . 2 -}}
{{- if or (and $rule.unless (not $value)) (and $rule.if (ternary (eq (toString $value) (toString $rule.is)) (not (empty $value)) (hasKey $rule "is"))) -}}
true
{{- end -}}
{{- end }}

{{/* Reject a value that has no effect. Takes (list VALUE-PATH CONDITION-PATH CONDITION-VALUE RULE). */}}
{{- define "llava.rejectWithoutEffect" -}}
{{- $path := index . 0 -}}
{{- $condition := index . 1 -}}
{{- $value := index . 2 -}}
{{- $rule := index . 3 -}}
{{- if kindIs "bool" $value -}}
{{- fail (printf "%s has no effect, because %s is %v. Set %s to %v, or remove %s." $path $condition $value $condition (not $value) $path) -}}
{{- else if hasKey $rule "is" -}}
{{- fail (printf "%s has no effect, because %s is %v. Set %s to %v, or remove %s." $path $condition $value $condition $rule.is $path) -}}
{{- else if $rule.if -}}
{{- fail (printf "%s has no effect, because %s is %v. Set %s, or remove %s." $path $condition $value $condition $path) -}}
{{- else -}}
{{- fail (printf "%s has no effect, because %s is set. Remove one of them." $path $condition) -}}
{{- end -}}
{{- end }}

{{/*
Reject values that have no effect according to files/conditions.yaml. A default in `worker` is allowed if it has an
effect for any model.
*/}}
{{- define "llava.checkConditions" -}}
{{- $models := include "llava.models" . | fromJson -}}
{{- $defaults := .Files.Get "files/defaults.yaml" | fromYaml -}}
{{- range $rule := .Files.Get "files/conditions.yaml" | fromYamlArray -}}
{{- $condition := $rule.if | default $rule.unless -}}
{{- $ofModel := trimPrefix "worker." $condition -}}
{{- $isMet := include "llava.isMet" (list $.Values $condition $rule) -}}
{{- if ne $ofModel $condition -}}
{{- $isMet = "" -}}
{{- range $model := $models -}}
{{- $isMet = $isMet | default (include "llava.isMet" (list $model $ofModel $rule)) -}}
{{- end -}}
{{- end -}}
{{- range $path := $rule.values -}}
{{- $default := (include "llava.valueAt" (list $defaults $path) | fromJson).value -}}
{{- $value := (include "llava.valueAt" (list $.Values $path) | fromJson).value -}}
{{- if and (not $isMet) (ne (toJson $value) (toJson $default)) (not (and (empty $value) (empty $default))) -}}
{{- include "llava.rejectWithoutEffect" (list $path $condition (include "llava.valueAt" (list $.Values $condition) | fromJson).value $rule) -}}
{{- end -}}
{{- if hasPrefix "worker." $path -}}
{{- range $key, $own := $.Values.models -}}
{{- $value = (include "llava.valueAt" (list $own (trimPrefix "worker." $path)) | fromJson).value -}}
{{- $model := get $models $key -}}
{{- if not (or (include "llava.isMet" (list $model $ofModel $rule)) (eq (toJson $value) (toJson $default)) (and (kindIs "string" $value) (empty $value))) -}}
{{- $prefix := printf "models.%s." $key -}}
{{- include "llava.rejectWithoutEffect" (list (replace "worker." $prefix $path) (replace "worker." $prefix $condition) (include "llava.valueAt" (list $model $ofModel) | fromJson).value $rule) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
