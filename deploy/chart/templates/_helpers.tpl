{{/* The base name, cut so that suffixes fit. */}}
{{- define "agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Of the release: what there is one of. */}}
{{- define "agent.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "agent.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The release's name with a suffix that survives the limit of 63 characters: (dict "root" $ "suffix" "hybrid"). */}}
{{- define "agent.suffixed" -}}
{{- $name := include "agent.fullname" .root -}}
{{- if .suffix -}}
{{- printf "%s-%s" ($name | trunc (int (sub 62 (len .suffix))) | trimSuffix "-") .suffix -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "agent.selectorLabels" -}}
app.kubernetes.io/name: {{ include "agent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "agent.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "agent.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "agent.serviceAccountName" -}}
{{- default (ternary (include "agent.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "agent.image" -}}
{{- with .Values.image -}}
{{- if .override -}}
{{- .override -}}
{{- else -}}
{{- $name := printf "%s:%s" .repository (toString (default $.Chart.AppVersion .tag)) -}}
{{- with .containerRegistry -}}{{- trimSuffix "/" . }}/{{- end -}}
{{- $name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Empty where the agent finds it: AWS's values have placeholders to fill, which name nothing. */}}
{{- define "agent.clusterName" -}}
{{- ternary "" .Values.clusterName (eq (toString .Values.clusterName) "EKS_CLUSTER_NAME") -}}
{{- end -}}

{{/* The agent's environment as a map, likewise. */}}
{{- define "agent.env" -}}
{{- $env := deepCopy (default dict .Values.env) -}}
{{- if eq (toString (get $env "AWS_REGION")) "AWS_REGION_NAME" -}}{{- $_ := unset $env "AWS_REGION" -}}{{- end -}}
{{- toYaml $env -}}
{{- end -}}

{{/* The file on the node with the certificates to trust, if any. */}}
{{- define "agent.nodeCaBundle" -}}
{{- $region := toString (default "" (default dict .Values.env).AWS_REGION) -}}
{{- default (ternary "/etc/pki/tls/certs/ca-bundle.crt" "" (contains "-iso" $region)) .Values.nodeCaBundle -}}
{{- end -}}

{{/*
A map of flags as a list of arguments. A long flag and its value are one argument: switches take a value in no other
way. Numbers of a values file are floats: 2000000 must not become 2e+06.
*/}}
{{- define "agent.arguments" -}}
{{- range $flag, $value := . }}
{{- $text := ternary (printf "%.0f" $value) (toString $value) (kindIs "float64" $value) -}}
{{- if or (kindIs "invalid" $value) (eq $text "") }}
- {{ $flag | quote }}
{{- else if hasPrefix "--" $flag }}
- {{ printf "%s=%s" $flag $text | quote }}
{{- else }}
- {{ $flag | quote }}
- {{ $text | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Surge unless the values say otherwise; the API server takes no strategy that does both. */}}
{{- define "agent.updateStrategy" -}}
{{- $strategy := .Values.updateStrategy -}}
{{- if or $strategy.rollingUpdate (eq $strategy.type "OnDelete") -}}
{{- toYaml $strategy -}}
{{- else -}}
type: RollingUpdate
rollingUpdate:
  maxSurge: 1
  maxUnavailable: 0
{{- end -}}
{{- end -}}

{{/* (dict "at" <path> "flags" <map>) */}}
{{- define "agent.checkFlags" -}}
{{- range $flag, $_ := .flags -}}
{{- if not (regexMatch "^(--[a-z][a-z-]*|-[a-z])$" $flag) -}}
{{- fail (printf "%s.additionalArgs: '%s' is no flag: write it as on the command line, with its dashes" $.at $flag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a schema cannot say, or not in a sentence. */}}
{{- define "agent.check" -}}
{{- range $name, $_ := .Values.env -}}
{{- if not (regexMatch "^[A-Za-z_][A-Za-z0-9_]*$" $name) -}}
{{- fail (printf "env: '%s' is no name of an environment variable" $name) -}}
{{- end -}}
{{- end -}}
{{- include "agent.checkFlags" (dict "at" "agent" "flags" .Values.agent.additionalArgs) -}}
{{- $rolling := default dict .Values.updateStrategy.rollingUpdate -}}
{{- $some := list -}}
{{- range $key, $value := $rolling -}}
{{- if not (has (toString $value) (list "0" "0%")) -}}{{- $some = append $some $key -}}{{- end -}}
{{- end -}}
{{- if gt (len $some) 1 -}}
{{- fail "updateStrategy.rollingUpdate: a DaemonSet has either maxSurge or maxUnavailable above 0, not both" -}}
{{- end -}}
{{- if and $rolling (not $some) -}}
{{- fail "updateStrategy.rollingUpdate: one of maxSurge and maxUnavailable must be above 0" -}}
{{- end -}}
{{- $created := 0 -}}
{{- $suffixes := dict -}}
{{- range $key, $daemonset := .Values.daemonsets -}}
{{- if and $daemonset $daemonset.create -}}
{{- $created = add $created 1 -}}
{{- include "agent.checkFlags" (dict "at" (printf "daemonsets.%s" $key) "flags" $daemonset.additionalArgs) -}}
{{- $suffix := default "" $daemonset.nameSuffix -}}
{{- if hasKey $suffixes $suffix -}}
{{- fail (printf "daemonsets.%s.nameSuffix: daemonsets.%s has the same, so both would have one name" $key (get $suffixes $suffix)) -}}
{{- end -}}
{{- $_ := set $suffixes $suffix $key -}}
{{- end -}}
{{- end -}}
{{- if eq (int $created) 0 -}}
{{- fail "daemonsets: none is to be created; set daemonsets.cloud.create or another one's to true" -}}
{{- end -}}
{{- range list "serviceMonitor" "podMonitor" -}}
{{- if and (index $.Values.metrics .).enabled (not $.Values.metrics.enabled) -}}
{{- fail (printf "metrics.%s.enabled: there is nothing to scrape unless metrics.enabled is true" .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- fail "metrics: serviceMonitor and podMonitor would have every agent scraped twice; enable one" -}}
{{- end -}}
{{- end -}}

{{/* The suffix of a DaemonSet that is created, for an example. */}}
{{- define "agent.firstSuffix" -}}
{{- $found := dict -}}
{{- range .Values.daemonsets -}}
{{- if and . .create (not (hasKey $found "suffix")) -}}{{- $_ := set $found "suffix" (default "" .nameSuffix) -}}{{- end -}}
{{- end -}}
{{- get $found "suffix" -}}
{{- end -}}
