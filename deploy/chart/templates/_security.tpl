{{/* The container's rights: (dict "root" $ "more" <additionalSecurityContext>). */}}
{{- define "agent.securityContext" -}}
{{- $context := dict "runAsUser" 0 "runAsGroup" 0 "readOnlyRootFilesystem" true -}}
{{- if eq .root.Values.securityMode "privileged" -}}
{{- $_ := set $context "privileged" true -}}
{{- else -}}
{{- /*
SYS_ADMIN: load and attach programs, enter network namespaces (steering.rs, netns.rs).
DAC_READ_SEARCH: open a cgroup by its id; token files of pods with users of their own (cgroup/mount.rs, kubelet/files.rs).
SYS_PTRACE: /proc/PID/ns/net of other users' processes (namespace.rs).
NET_BIND_SERVICE: listener ports below 1024 (netns.rs).
*/ -}}
{{- $capabilities := list "SYS_ADMIN" "DAC_READ_SEARCH" "SYS_PTRACE" "NET_BIND_SERVICE" -}}
{{- $_ := set $context "privileged" false -}}
{{- $_ := set $context "capabilities" (dict "drop" (list "ALL") "add" $capabilities) -}}
{{- $_ := set $context "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- if semverCompare ">=1.30.0-0" .root.Capabilities.KubeVersion.Version -}}
{{- $_ := set $context "appArmorProfile" (dict "type" "Unconfined") -}}
{{- end -}}
{{- end -}}
{{- toYaml (mergeOverwrite $context (deepCopy (default dict .more))) -}}
{{- end -}}
