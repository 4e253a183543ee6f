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

{{- define "whalebridge.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{- /* A value as JSON, with each string in it rendered as a template. Takes "value" and "context". */}}
{{- define "whalebridge.rendered" -}}
{{- $context := .context }}
{{- $parts := list }}
{{- if kindIs "string" .value }}
{{- tpl .value $context | toJson }}
{{- else if kindIs "map" .value }}
{{- range $name, $value := .value }}
{{- $rendered := include "whalebridge.rendered" (dict "value" $value "context" $context) }}
{{- $parts = append $parts (printf "%s: %s" (toJson $name) $rendered) }}
{{- end }}
{{- $parts | join ", " | printf "{%s}" }}
{{- else if kindIs "slice" .value }}
{{- range .value }}
{{- $parts = append $parts (include "whalebridge.rendered" (dict "value" . "context" $context)) }}
{{- end }}
{{- $parts | join ", " | printf "[%s]" }}
{{- else }}
{{- toJson .value }}
{{- end }}
{{- end }}

{{- /* Two values as JSON, the second over the first: maps are merged; in lists, items of the same name (mountPath for
       volumeMounts, port for endpoints) are replaced, those of containers, initContainers and endpoints merged, and the
       others appended; lists without names, and all other values, are replaced. Takes "base", "over", and the "name" of
       the value. */}}
{{- define "whalebridge.merged" -}}
{{- $keys := dict "volumeMounts" "mountPath" "endpoints" "port" "podMetricsEndpoints" "port" }}
{{- $key := get $keys .name | default "name" }}
{{- $named := and (kindIs "slice" .base) (kindIs "slice" .over) }}
{{- if $named }}
{{- range concat .base .over }}
{{- $named = and $named (kindIs "map" .) (hasKey (ternary . dict (kindIs "map" .)) $key) }}
{{- end }}
{{- end }}
{{- $parts := list }}
{{- if and (kindIs "map" .base) (kindIs "map" .over) }}
{{- range $name := concat (keys .base) (keys .over) | uniq | sortAlpha }}
{{- $value := get (hasKey $.over $name | ternary $.over $.base) $name | toJson }}
{{- if and (hasKey $.base $name) (hasKey $.over $name) }}
{{- $value = include "whalebridge.merged" (dict "base" (get $.base $name) "over" (get $.over $name) "name" $name) }}
{{- end }}
{{- $parts = append $parts (printf "%s: %s" (toJson $name) $value) }}
{{- end }}
{{- $parts | join ", " | printf "{%s}" }}
{{- else if $named }}
{{- $over := dict }}
{{- range .over }}
{{- $_ := set $over (get . $key) . }}
{{- end }}
{{- range .base }}
{{- $item := . | toJson }}
{{- if hasKey $over (get . $key) }}
{{- $item = get $over (get . $key) | toJson }}
{{- if has $.name (list "containers" "initContainers" "endpoints" "podMetricsEndpoints") }}
{{- $item = include "whalebridge.merged" (dict "base" . "over" (get $over (get . $key)) "name" "") }}
{{- end }}
{{- $over = omit $over (get . $key) }}
{{- end }}
{{- $parts = append $parts $item }}
{{- end }}
{{- range .over }}
{{- if hasKey $over (get . $key) }}
{{- $parts = append $parts (toJson .) }}
{{- end }}
{{- end }}
{{- $parts | join ", " | printf "[%s]" }}
{{- else }}
{{- toJson .over }}
{{- end }}
{{- end }}

{{- /* The only labels of the pods: a new version of the chart alone must not replace them. */}}
{{- define "whalebridge.selectorLabels" -}}
app.kubernetes.io/name: {{ include "whalebridge.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "whalebridge.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/part-of: whalebridge
{{ include "whalebridge.selectorLabels" . }}
{{- end }}

{{- /* Name, namespace, labels and annotations of an object. Takes "context", and those of the object that differ: "name",
       "namespace", "labels", which may not replace the chart's, "annotations", and "component" for an object that the
       selector must not match. */}}
{{- define "whalebridge.metadata" -}}
{{- $labels := include "whalebridge.labels" .context | fromYaml }}
{{- with .component }}
{{- $_ := set $labels "app.kubernetes.io/name" (printf "%s-%s" (include "whalebridge.name" $.context | trunc 50) .) }}
{{- end }}
{{- $given := merge (dict) (default dict .labels) (default dict .context.Values.commonLabels) }}
{{- $given = include "whalebridge.rendered" (dict "value" $given "context" .context) | fromJson -}}
name: {{ default (include "whalebridge.fullname" .context) .name | quote }}
namespace: {{ default (include "whalebridge.namespace" .context) .namespace | quote }}
labels:
  {{- merge $labels $given | toYaml | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- include "whalebridge.rendered" (dict "value" . "context" $.context) | fromJson | toYaml | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The CronJob's name; Kubernetes allows 52 characters, because it appends to it. */}}
{{- define "whalebridge.retireName" -}}
{{- printf "%s-retire" (include "whalebridge.fullname" . | trunc 45 | trimSuffix "-") }}
{{- end }}

{{- /* The labels of the CronJob's pods, which differ from those of the DaemonSet's. */}}
{{- define "whalebridge.retireLabels" -}}
{{- $labels := get (include "whalebridge.metadata" (dict "context" . "component" "retire") | fromYaml) "labels" }}
{{- pick $labels "app.kubernetes.io/name" "app.kubernetes.io/instance" | toYaml }}
{{- end }}

{{- define "whalebridge.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "whalebridge.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "whalebridge.image" -}}
{{- $registry := default .Values.image.registry (default dict .Values.global).imageRegistry }}
{{- if not (or $registry (ne .Values.image.repository "whalebridge") (eq .Values.image.pullPolicy "Never")) }}
{{- fail "image.registry is not set: build the image, push it, and set image.registry to your registry; or, if the nodes have the image, set image.pullPolicy to Never." }}
{{- end }}
{{- $name := empty $registry | ternary .Values.image.repository (printf "%s/%s" $registry .Values.image.repository) }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $name .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- /* The imagePullSecrets of a pod; global ones are names or, as in other charts, maps. */}}
{{- define "whalebridge.imagePullSecrets" -}}
{{- $secrets := list }}
{{- range concat (default list (default dict .Values.global).imagePullSecrets) (default list .Values.imagePullSecrets) }}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- with $secrets | uniq }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The path of containerd's socket in each distribution, or why whalebridge cannot run there and what to do. */}}
{{- define "whalebridge.distributions" -}}
containerd: /run/containerd/containerd.sock
aks: /run/containerd/containerd.sock
bottlerocket: /run/containerd/containerd.sock
eks: /run/containerd/containerd.sock
gke-cos: /run/containerd/containerd.sock
k0s: /run/k0s/containerd.sock
k3s: /run/k3s/containerd/containerd.sock
microk8s: /var/snap/microk8s/common/run/containerd.sock
rke2: /run/k3s/containerd/containerd.sock
talos: /run/containerd/containerd.sock
cri-o: these nodes run CRI-O and have no containerd; use nodes with containerd
docker: the pods' containers are not in containerd's Kubernetes namespace; change the nodes' container runtime to containerd
fargate: there is no node with a containerd to mount; use managed node groups (eks), and the pods avoid Fargate
gke-autopilot: it allows hostPath volumes only below /var/log; use a Standard cluster (gke-cos)
openshift: its nodes run CRI-O and have no containerd; use a distribution with containerd
{{- end }}

{{- define "whalebridge.socket" -}}
{{- $distributions := include "whalebridge.distributions" . | fromYaml }}
{{- $socket := get $distributions .Values.distribution }}
{{- if not $socket }}
{{- $supported := list }}
{{- range $name, $value := $distributions }}
{{- if hasPrefix "/" $value }}
{{- $supported = append $supported $name }}
{{- end }}
{{- end }}
{{- printf "distribution: %s is unknown; use one of %s, and set containerd.socket if its path differs." .Values.distribution (join ", " $supported) | fail }}
{{- else if not (hasPrefix "/" $socket) }}
{{- printf "distribution: %s is not supported: %s." .Values.distribution $socket | fail }}
{{- end }}
{{- default $socket .Values.containerd.socket }}
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

{{- /* Security context of a pod, below podSecurityContext. SELinux: all containers need the same level, because they share
       volumes and a socket. */}}
{{- define "whalebridge.podSecurityContext" -}}
{{- $defaults := dict "fsGroup" (int64 .Values.user) "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- if dig "seLinuxOptions" "" (default dict .Values.podSecurityContext) }}
{{- $_ := set $defaults "seLinuxOptions" (dict "level" "s0") }}
{{- end }}
{{- mergeOverwrite $defaults (deepCopy (default dict .Values.podSecurityContext)) | toYaml }}
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
{{- if and (eq .Values.persistence.type "emptyDir") (not .Values.existingConfigMap) (not (dig "limits" "ephemeral-storage" "" $resources)) }}
{{- $resources = mergeOverwrite (dict "requests" (dict "ephemeral-storage" (include "whalebridge.stateSize" .))) $resources }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- /* The brokers in config.sinks as HOST:PORT, from settings or URLs, one per line. */}}
{{- define "whalebridge.brokers" -}}
{{- $brokers := list }}
{{- range .Values.config.sinks }}
{{- $defaultPort := "" }}
{{- $servers := list }}
{{- $url := ternary . "" (kindIs "string" .) | lower | trim }}
{{- if kindIs "string" . }}
{{- if regexMatch "^(kafkas?|nats|tls)://" $url }}
{{- $defaultPort = ternary "9092" "4222" (hasPrefix "kafka" $url) }}
{{- $servers = regexReplaceAll "^[a-z]+://([^/]*).*$" $url "${1}" | splitList "," }}
{{- end }}
{{- else if eq .type "http" }}
{{- $url = .url }}
{{- else if has .type (list "kafka" "nats") }}
{{- $defaultPort = ternary "9092" "4222" (eq .type "kafka") }}
{{- $configured := ternary .bootstrap_servers .servers (eq .type "kafka") }}
{{- $servers = ternary (splitList "," (toString $configured)) $configured (kindIs "string" $configured) }}
{{- end }}
{{- if regexMatch "^https?://" $url }}
{{- $defaultPort = ternary "443" "80" (hasPrefix "https" $url) }}
{{- $servers = regexReplaceAll "^[a-z]+://([^/?]*).*$" $url "${1}" | list }}
{{- end }}
{{- range $servers }}
{{- $server := regexReplaceAll ":0*([0-9]*)$" . ":${1}" | trimSuffix ":" }}
{{- $brokers = append $brokers (regexMatch ":[0-9]+$" $server | ternary $server (printf "%s:%s" $server $defaultPort)) }}
{{- end }}
{{- end }}
{{- join "\n" $brokers }}
{{- end }}

{{- /* The ports of all brokers, one per line. */}}
{{- define "whalebridge.brokerPorts" -}}
{{- $ports := list }}
{{- range include "whalebridge.brokers" . | splitList "\n" | compact }}
{{- $ports = append $ports (regexFind "[0-9]+$" .) }}
{{- end }}
{{- range .Values.networkPolicy.brokerPorts }}
{{- $ports = append $ports (. | int64 | toString) }}
{{- end }}
{{- $ports | uniq | sortAlpha | join "\n" }}
{{- end }}

{{- /* The host names of all brokers, with networkPolicy.brokerNames, one per line. */}}
{{- define "whalebridge.brokerNames" -}}
{{- $names := default list .Values.networkPolicy.brokerNames }}
{{- range include "whalebridge.brokers" . | splitList "\n" | compact }}
{{- $host := regexReplaceAll ":[0-9]+$" . "" }}
{{- if not (regexMatch "^([0-9.]+|\\[.*\\])$" $host) }}
{{- $names = append $names $host }}
{{- end }}
{{- end }}
{{- $names | uniq | sortAlpha | join "\n" }}
{{- end }}

{{- /* The brokers as peers of a NetworkPolicy: networkPolicy.brokers and, with Cilium, those in config.sinks by address. */}}
{{- define "whalebridge.brokerPeers" -}}
{{- $peers := default list .Values.networkPolicy.brokers }}
{{- if eq .Values.networkPolicy.flavor "cilium" }}
{{- range include "whalebridge.brokers" . | splitList "\n" | compact }}
{{- $host := regexReplaceAll ":[0-9]+$" . "" }}
{{- if hasPrefix "[" $host }}
{{- $peers = append $peers (dict "ipBlock" (dict "cidr" (printf "%s/128" (trimAll "[]" $host)))) }}
{{- else if regexMatch "^[0-9.]+$" $host }}
{{- $peers = append $peers (dict "ipBlock" (dict "cidr" (printf "%s/32" $host))) }}
{{- end }}
{{- end }}
{{- end }}
{{- with $peers | uniq }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- /* Whether sinks may be set where this chart cannot read their ports. */}}
{{- define "whalebridge.hasHiddenSinks" -}}
{{- $hidden := or .Values.existingSecrets.env .Values.extraEnvFrom .Values.existingConfigMap | empty | not }}
{{- range .Values.extraEnv }}
{{- $hidden = or $hidden (hasPrefix "WHALEBRIDGE_SINKS" .name) }}
{{- end }}
{{- ternary "true" "" $hidden }}
{{- end }}

{{- /* The ports of DNS pods, where policies apply: usually 53, but 1053 in vcluster, and 8053 in Gardener. */}}
{{- define "whalebridge.dnsPorts" -}}
53,1053,8053
{{- end }}

{{- /* The egress rules of the NetworkPolicies. With Cilium, other rules allow DNS and the brokers by name. */}}
{{- define "whalebridge.egress" -}}
{{- $cilium := eq .Values.networkPolicy.flavor "cilium" }}
{{- $ports := include "whalebridge.brokerPorts" . | splitList "\n" | compact }}
{{- $peers := include "whalebridge.brokerPeers" . }}
{{- if not $cilium }}
- ports:
    {{- range include "whalebridge.dnsPorts" . | splitList "," }}
    - port: {{ . }}
      protocol: UDP
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end }}
{{- if and $ports (or $peers (not $cilium)) }}
- ports:
    {{- range $ports }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
  {{- with $peers }}
  to:
    {{- . | nindent 4 }}
  {{- end }}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{- /* The egress rules of the CiliumNetworkPolicies: DNS, and the brokers by name. */}}
{{- define "whalebridge.ciliumEgress" -}}
- toPorts:
    - ports:
        {{- range include "whalebridge.dnsPorts" . | splitList "," }}
        - port: {{ . | quote }}
          protocol: ANY
        {{- end }}
      rules: # with these, Cilium reads the responses, which have the addresses for toFQDNs
        dns:
          - matchPattern: "*"
{{- $names := include "whalebridge.brokerNames" . | splitList "\n" | compact }}
{{- $ports := include "whalebridge.brokerPorts" . | splitList "\n" | compact }}
{{- if and $names $ports }}
- toFQDNs:
    {{- range $names }}
    - {{ contains "*" . | ternary "matchPattern" "matchName" }}: {{ . | quote }}
    {{- end }}
  toPorts:
    - ports:
        {{- range $ports }}
        - port: {{ . | quote }}
          protocol: TCP
        {{- end }}
{{- end }}
{{- end }}

{{- /* The spec of a PodMonitor or ServiceMonitor, without extraSpec. Takes "values", "endpoints" (the name of the list of
       endpoints) and "context". */}}
{{- define "whalebridge.monitorSpec" -}}
namespaceSelector:
  matchNames: [{{ include "whalebridge.namespace" .context | quote }}]
selector:
  matchLabels:
    {{- include "whalebridge.selectorLabels" .context | nindent 4 }}
{{ .endpoints }}:
  - port: http
    path: /metrics
    {{- with .values.interval }}
    interval: {{ . | quote }}
    {{- end }}
    {{- with .values.scrapeTimeout }}
    scrapeTimeout: {{ . | quote }}
    {{- end }}
    {{- if .values.honorLabels }}
    honorLabels: true
    {{- end }}
    relabelings: # the labels that the alerts and the dashboard expect
      - targetLabel: job
        replacement: whalebridge
      - sourceLabels: [__meta_kubernetes_pod_node_name]
        targetLabel: instance
    {{- with .values.metricRelabelings }}
    metricRelabelings:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}

{{- /* Name of the ConfigMap with config.yaml. */}}
{{- define "whalebridge.configMap" -}}
{{- if and .Values.existingConfigMap .Values.config }}
{{- fail "config would have no effect, because existingConfigMap has all settings: set one of the two." }}
{{- end }}
{{- default (include "whalebridge.fullname" .) .Values.existingConfigMap }}
{{- end }}

{{- /* The settings that the chart sets, as variables, which have priority over the file. */}}
{{- define "whalebridge.settings" -}}
- name: WHALEBRIDGE_HOST
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: WHALEBRIDGE_CONTAINERD__ADDRESS
  value: {{ include "whalebridge.socket" . | quote }}
- name: WHALEBRIDGE_STATE_DIR
  value: /var/lib/whalebridge
- name: WHALEBRIDGE_HTTP__LISTEN
  value: {{ printf "%s:%d" .Values.http.address (int64 .Values.http.port) | quote }}
- name: WHALEBRIDGE_HTTP__CONTAINERS
  value: {{ .Values.http.containers | default false | quote }}
- name: WHALEBRIDGE_RELOAD_ON_CHANGE
  value: "true"
{{- with .Values.clusterName }}
{{- if dig "attributes" "cluster" "" $.Values.config }}
{{- fail "Set clusterName or config.attributes.cluster, not both." }}
{{- end }}
{{- if ge (len (dig "attributes" (dict) $.Values.config)) 16 }}
{{- fail "Remove one of config.attributes: there can be 16 attributes, and clusterName is one." }}
{{- end }}
- name: WHALEBRIDGE_ATTRIBUTES__CLUSTER
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{- /* A digest of the settings that a reload cannot change; if it changes, the pods are replaced. */}}
{{- define "whalebridge.restartChecksum" -}}
{{- $fixed := omit .Values.config "namespaces" "containers" "labels" "sinks" "snapshot" "heartbeat" "log" }}
{{- with dig "log" "format" "" .Values.config }}
{{- $_ := set $fixed "log.format" . }}
{{- end }}
{{- with .Values.config.sinks }}
{{- $_ := set $fixed "sinks" (keys . | sortAlpha) }}
{{- end }}
{{- toJson $fixed | sha256sum }}
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

{{/* Address of the page with the instructions for the alerts; empty if it is not known. */}}
{{- define "whalebridge.runbookUrl" -}}
{{- if .Values.prometheusRule.runbookUrl }}
{{- .Values.prometheusRule.runbookUrl }}
{{- else if .Chart.Sources }}
{{- printf "%s/blob/v%s/docs/operations.md" (first .Chart.Sources) .Chart.AppVersion }}
{{- end }}
{{- end }}
