{{/* The number that a quantity of Kubernetes expresses, such as 536870912 for "512Mi". Takes (list PATH QUANTITY). */}}
{{- define "llava.quantity" -}}
{{- $path := index . 0 -}}
{{- $text := index . 1 | toString -}}
{{- if not (regexMatch "^[0-9]+([.][0-9]*)?([eE][+]?[0-9]+|[mkMGTPE]|[KMGTPE]i)?$" $text) -}}
{{- fail (printf "%s is %q, which is not a quantity of Kubernetes. Use a number with a suffix such as m, M, Mi or Gi." $path $text) -}}
{{- end -}}
{{- $suffix := regexFind "[mkMGTPEKi]*$" $text -}}
{{- $factors := dict "" 1.0 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{- mulf (trimSuffix $suffix $text | float64) (get $factors $suffix) -}}
{{- end }}

{{/* Check that no request exceeds its limit. Takes (list PATH RESOURCES). */}}
{{- define "llava.checkResources" -}}
{{- $path := index . 0 -}}
{{- $limits := (index . 1).limits | default dict -}}
{{- range $name, $limit := $limits -}}
{{- $_ := include "llava.quantity" (list (printf "%s.limits.%s" $path $name) $limit) -}}
{{- end -}}
{{- range $name, $request := (index . 1).requests -}}
{{- $number := include "llava.quantity" (list (printf "%s.requests.%s" $path $name) $request) | float64 -}}
{{- with get $limits $name -}}
{{- if gt $number (include "llava.quantity" (list $path .) | float64) -}}
{{- fail (printf "%s.requests.%s is %v, but %s.limits.%s is %v. Increase the limit, or decrease the request." $path $name $request $path $name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
