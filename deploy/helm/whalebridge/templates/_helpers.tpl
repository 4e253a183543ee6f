{{- define "whalebridge.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* A DNS label that begins with a letter, which the name of a Service must be; a release's name may be none. */}}
{{- define "whalebridge.fullname" -}}
{{- $name := include "whalebridge.name" . }}
{{- $release := .Release.Name | replace "." "-" }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if regexMatch "^[0-9]" $release }}
{{- printf "%s-%s" $name $release | trunc 63 | trimSuffix "-" }}
{{- else if contains $name $release }}
{{- $release | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" $release $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* The only labels of the pods: a new version of the chart alone must not replace them. */}}
{{- define "whalebridge.selectorLabels" -}}
app.kubernetes.io/name: {{ include "whalebridge.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- /* Labels of every object; objects that the selector matches have the selector labels as well. */}}
{{- define "whalebridge.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
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

{{- /* The path of the socket in each distribution. */}}
{{- define "whalebridge.sockets" -}}
containerd: /run/containerd/containerd.sock
k3s: /run/k3s/containerd/containerd.sock
rke2: /run/k3s/containerd/containerd.sock
microk8s: /var/snap/microk8s/common/run/containerd.sock
k0s: /run/k0s/containerd.sock
bottlerocket: /run/containerd/containerd.sock
{{- end }}

{{- define "whalebridge.socket" -}}
{{- default (get (include "whalebridge.sockets" . | fromYaml) .Values.distribution) .Values.containerd.socket }}
{{- end }}

{{- /* The mount of the socket's directory. containerd's own mounts are below it, such as the root file systems and /dev/shm
       of all pods: HostToContainer removes those here that containerd unmounts, which else stay until the pod ends. */}}
{{- define "whalebridge.socketMount" -}}
- name: containerd
  mountPath: {{ include "whalebridge.socket" . | dir | quote }}
  readOnly: true # clients can connect all the same
  mountPropagation: HostToContainer
{{- end }}

{{- /* The user's affinity, and in each of its terms for nodes: no nodes without a containerd of their own. */}}
{{- define "whalebridge.affinity" -}}
{{- $fargate := dict "key" "eks.amazonaws.com/compute-type" "operator" "NotIn" "values" (list "fargate") }}
{{- $virtual := dict "key" "type" "operator" "NotIn" "values" (list "virtual-kubelet") }}
{{- $affinity := default dict .Values.affinity }}
{{- $terms := list }}
{{- range dig "nodeAffinity" "requiredDuringSchedulingIgnoredDuringExecution" "nodeSelectorTerms" (list dict) $affinity }}
{{- $expressions := concat (default list .matchExpressions) (list $fargate $virtual) }}
{{- $terms = append $terms (merge (dict "matchExpressions" $expressions) .) }}
{{- end }}
{{- $required := dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) }}
{{- mergeOverwrite (deepCopy $affinity) (dict "nodeAffinity" $required) | toYaml }}
{{- end }}

{{- /* SELinux: all containers of a pod need the same level, because they share volumes and a socket. */}}
{{- define "whalebridge.podSecurityContext" -}}
seccompProfile:
  type: RuntimeDefault
{{- with .Values.containerd.seLinuxOptions }}
seLinuxOptions:
  {{- merge (deepCopy .) (dict "level" "s0") | toYaml | nindent 2 }}
{{- end }}
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
runAsUser: {{ .Values.user | int64 }}
runAsGroup: {{ .Values.user | int64 }}
{{- end }}

{{- /* Owner of the state directory: the user of the bridge. */}}
{{- define "whalebridge.stateOwner" -}}
{{- ternary 0 (int64 .Values.user) (and .Values.containerd.runAsRoot (not .Values.proxy.enabled)) }}
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
runAsUser: {{ .Values.user | int64 }}
runAsGroup: {{ .Values.containerd.group | int64 }}
{{- end }}
{{- end }}

{{- /* Size of the state directory in an emptyDir: SQLite's tenth and the write-ahead log beyond the records, and dead letters. */}}
{{- define "whalebridge.stateSize" -}}
{{- $records := dig "outbox" "max_bytes" 0 (default dict .Values.config) | default 536870912 | int64 }}
{{- printf "%dMi" (add 1 (div (add (div (mul 11 $records) 10) 50331648) 1048576)) }}
{{- end }}

{{- /* Resources of the bridge, including the emptyDir. */}}
{{- define "whalebridge.resources" -}}
{{- $resources := deepCopy (default dict .Values.resources) }}
{{- if and (eq .Values.persistence.type "emptyDir") (not (dig "limits" "ephemeral-storage" "" $resources)) }}
{{- $resources = mergeOverwrite (dict "requests" (dict "ephemeral-storage" (include "whalebridge.stateSize" .))) $resources }}
{{- end }}
{{- toYaml $resources }}
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
{{- $_ := set $ports (. | int64 | toString) true }}
{{- end }}
{{- keys $ports | sortAlpha | join "\n" }}
{{- end }}

{{- /* Whether sinks are set in the environment, where this chart cannot read their ports. */}}
{{- define "whalebridge.hasHiddenSinks" -}}
{{- $hidden := not (empty .Values.existingSecrets.env) }}
{{- range .Values.extraEnv }}
{{- $hidden = or $hidden (hasPrefix "WHALEBRIDGE_SINKS" .name) }}
{{- end }}
{{- ternary "true" "" $hidden }}
{{- end }}

{{- define "whalebridge.config" -}}
{{- $http := dict "listen" (printf "%s:%d" .Values.http.address (int64 .Values.http.port)) }}
{{- $chartSettings := dict "containerd" (dict "address" (include "whalebridge.socket" .)) "state_dir" "/var/lib/whalebridge" "http" $http }}
{{- $defaults := dict "http" (dict "containers" false) }}
{{- mergeOverwrite $defaults (deepCopy .Values.config) $chartSettings | toYaml }}
{{- end }}

{{- /* Annotations of the pods, which podAnnotations may replace. */}}
{{- define "whalebridge.podAnnotations" -}}
kubectl.kubernetes.io/default-container: bridge
# The cluster autoscaler would evict the pod together with those that it should report on.
cluster-autoscaler.kubernetes.io/enable-ds-eviction: "false"
{{- end }}

{{- define "whalebridge.proxySocket" -}}
{{- printf "/run/whalebridge/%s" (include "whalebridge.socket" . | base) }}
{{- end }}

{{- define "whalebridge.proxy" -}}
# Access to containerd's socket is equivalent to root on the node: only this container has it.
- name: proxy
  image: {{ include "whalebridge.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - proxy
    - --containerd
    - {{ include "whalebridge.socket" . | quote }}
    - --listen
    - {{ include "whalebridge.proxySocket" . | quote }}
    - --socket-group
    - {{ .Values.user | int64 | quote }}
  resources:
    {{- toYaml .Values.proxy.resources | nindent 4 }}
  securityContext:
    {{- include "whalebridge.socketSecurityContext" . | nindent 4 }}
  volumeMounts:
    {{- include "whalebridge.socketMount" . | nindent 4 }}
    - name: proxy
      mountPath: /run/whalebridge
{{- end }}
