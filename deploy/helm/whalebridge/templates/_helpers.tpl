{{- define "whalebridge.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "whalebridge.fullname" -}}
{{- $name := include "whalebridge.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "whalebridge.selectorLabels" -}}
app.kubernetes.io/name: {{ include "whalebridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Labels of every object; objects that the selector matches have the selector labels as well. */}}
{{- define "whalebridge.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: whalebridge
{{- end }}

{{- define "whalebridge.labels" -}}
{{ include "whalebridge.commonLabels" . }}
{{ include "whalebridge.selectorLabels" . }}
{{- end }}

{{- define "whalebridge.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "whalebridge.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "whalebridge.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- /* Differences between distributions: the path of the socket, and the SELinux options that allow opening it. */}}
{{- define "whalebridge.presets" -}}
containerd: {socket: /run/containerd/containerd.sock}
k3s: {socket: /run/k3s/containerd/containerd.sock}
rke2: {socket: /run/k3s/containerd/containerd.sock}
microk8s: {socket: /var/snap/microk8s/common/run/containerd.sock}
k0s: {socket: /run/k0s/containerd.sock}
bottlerocket:
  socket: /run/containerd/containerd.sock
  seLinuxOptions: {user: system_u, role: system_r, type: super_t, level: s0}
{{- end }}

{{- define "whalebridge.preset" -}}
{{- get (include "whalebridge.presets" . | fromYaml) .Values.distribution | toYaml }}
{{- end }}

{{- define "whalebridge.socket" -}}
{{- default (include "whalebridge.preset" . | fromYaml).socket .Values.containerd.socket }}
{{- end }}

{{- /* Security context of every container: no writable root filesystem, no capabilities. */}}
{{- define "whalebridge.restrictedSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "whalebridge.unprivileged" -}}
{{ include "whalebridge.restrictedSecurityContext" . }}
runAsNonRoot: true
runAsUser: {{ .Values.user }}
runAsGroup: {{ .Values.user }}
{{- end }}

{{- /* Owner of the state directory: the user of the bridge. */}}
{{- define "whalebridge.stateOwner" -}}
{{- ternary 0 .Values.user (and .Values.containerd.runAsRoot (not .Values.proxy.enabled)) }}
{{- end }}

{{- /* Security context of the one container that opens containerd's socket. */}}
{{- define "whalebridge.socketSecurityContext" -}}
{{ include "whalebridge.restrictedSecurityContext" . }}
{{- if .Values.containerd.runAsRoot }}
runAsNonRoot: false
runAsUser: 0
runAsGroup: 0
{{- else }}
runAsNonRoot: true
runAsUser: {{ .Values.user }}
runAsGroup: {{ .Values.containerd.group }}
{{- end }}
{{- with default (include "whalebridge.preset" . | fromYaml).seLinuxOptions .Values.containerd.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The ports of the brokers in config.sinks, from settings or URLs, one per line. */}}
{{- define "whalebridge.brokerPorts" -}}
{{- $ports := dict }}
{{- range .Values.config.sinks }}
{{- $defaultPort := "" }}
{{- $servers := list }}
{{- if kindIs "string" . }}
{{- if regexMatch "^(kafkas?|nats|tls)://" . }}
{{- $defaultPort = ternary "9092" "4222" (hasPrefix "kafka" .) }}
{{- $servers = regexReplaceAll "^[a-z]+://([^/]*).*$" . "${1}" | splitList "," }}
{{- end }}
{{- else if has .type (list "kafka" "nats") }}
{{- $defaultPort = ternary "9092" "4222" (eq .type "kafka") }}
{{- $configured := ternary .bootstrap_servers .servers (eq .type "kafka") }}
{{- $servers = ternary (splitList "," (toString $configured)) $configured (kindIs "string" $configured) }}
{{- end }}
{{- range $servers }}
{{- $port := regexFind ":[0-9]+$" . | trimPrefix ":" }}
{{- $_ := set $ports (default $defaultPort $port) true }}
{{- end }}
{{- end }}
{{- range .Values.networkPolicy.brokerPorts }}
{{- $_ := set $ports (toString .) true }}
{{- end }}
{{- keys $ports | sortAlpha | join "\n" }}
{{- end }}

{{- define "whalebridge.config" -}}
{{- $http := dict "listen" (printf "%s:%v" .Values.http.address .Values.http.port) }}
{{- $chartSettings := dict "containerd" (dict "address" (include "whalebridge.socket" .)) "state_dir" "/var/lib/whalebridge" "http" $http }}
{{- mergeOverwrite (deepCopy .Values.config) $chartSettings | toYaml }}
{{- end }}
