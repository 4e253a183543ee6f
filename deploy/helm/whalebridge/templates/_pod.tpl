{{- /* The spec of the pods, without extraEnv, extraVolumes, extraVolumeMounts and extraPodSpec. */}}
{{- define "whalebridge.podSpec" -}}
{{- /* Kubernetes 1.29 has init containers that run beside the others: they start before them, and stop after them. */}}
{{- $sidecar := semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version }}
serviceAccountName: {{ include "whalebridge.serviceAccount" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds | int64 }}
{{- include "whalebridge.imagePullSecrets" . | nindent 0 }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
  {{- include "whalebridge.affinity" . | nindent 2 }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "whalebridge.podSecurityContext" . | nindent 2 }}
initContainers:
  # The kubelet creates a directory owned by root, or a world-writable emptyDir. This container can only change its owner.
  - name: state
    image: {{ include "whalebridge.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [/opt/whalebridge/bin/python, -Ic]
    args:
      - |
        {{- .Files.Get "files/chown_state.py" | nindent 8 }}
      - /var/lib/whalebridge
      - {{ include "whalebridge.stateOwner" . | quote }}
    securityContext:
      runAsNonRoot: false
      runAsUser: 0
      runAsGroup: 0
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities:
        drop: [ALL]
        add: [CHOWN]
    resources:
      {{- toYaml .Values.resources | nindent 6 }}
    volumeMounts:
      - name: state
        mountPath: /var/lib/whalebridge
  {{- if and .Values.proxy.enabled $sidecar }}
  {{- include "whalebridge.proxy" . | nindent 2 }}
    restartPolicy: Always
    startupProbe: # the bridge starts when the proxy accepts connections
      exec:
        command:
          - /opt/whalebridge/bin/python
          - -Ic
          - "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
          - {{ include "whalebridge.proxySocket" . | quote }}
      periodSeconds: 1
      timeoutSeconds: 5
      failureThreshold: 60
  {{- end }}
containers:
  - name: bridge
    image: {{ include "whalebridge.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args: [run, --config, /etc/whalebridge/config.yaml]
    env:
      {{- include "whalebridge.settings" . | nindent 6 }}
    {{- if or .Values.existingSecrets.env .Values.extraEnvFrom }}
    envFrom:
      {{- range .Values.existingSecrets.env }}
      - secretRef:
          name: {{ . | quote }}
      {{- end }}
      {{- range .Values.extraEnvFrom }}
      - {{ include "whalebridge.rendered" (dict "value" . "context" $) }}
      {{- end }}
    {{- end }}
    ports:
      - name: http
        containerPort: {{ .Values.http.port | int64 }}
    startupProbe:
      httpGet:
        path: /livez
        port: http
      {{- with .Values.startupProbe }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    livenessProbe:
      httpGet:
        path: /livez
        port: http
      {{- with .Values.livenessProbe }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    readinessProbe:
      httpGet:
        path: /readyz
        port: http
      {{- with .Values.readinessProbe }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    resources:
      {{- include "whalebridge.resources" . | nindent 6 }}
    securityContext:
      {{- if .Values.proxy.enabled }}
      {{- include "whalebridge.unprivileged" . | nindent 6 }}
      {{- else }}
      {{- include "whalebridge.socketSecurityContext" . | nindent 6 }}
      {{- end }}
    volumeMounts:
      # The proxy's socket or containerd's own, at the same path.
      {{- if .Values.proxy.enabled }}
      - name: proxy
        mountPath: {{ include "whalebridge.socket" . | dir | quote }}
        readOnly: true
      {{- else }}
      {{- include "whalebridge.socketMount" . | nindent 6 }}
      {{- end }}
      - name: state
        mountPath: /var/lib/whalebridge
      - name: config # the whole directory: a file (subPath) would never change
        mountPath: /etc/whalebridge
        readOnly: true
      {{- range $index, $name := .Values.existingSecrets.files }}
      - name: secret-{{ $index }}
        mountPath: {{ printf "/etc/whalebridge/secrets/%s" $name | quote }}
        readOnly: true
      {{- end }}
  {{- if and .Values.proxy.enabled (not $sidecar) }}
  {{- include "whalebridge.proxy" . | nindent 2 }}
  {{- end }}
volumes:
  - name: containerd
    hostPath:
      path: {{ include "whalebridge.socket" . | dir | quote }}
      type: Directory
  {{- if .Values.proxy.enabled }}
  - name: proxy
    emptyDir:
      medium: Memory
      sizeLimit: 1Mi
  {{- end }}
  - name: state
    {{- if eq .Values.persistence.type "hostPath" }}
    hostPath:
      path: {{ .Values.persistence.path | quote }}
      type: DirectoryOrCreate
    {{- else }}
    emptyDir: {{ empty .Values.existingConfigMap | ternary (dict "sizeLimit" (include "whalebridge.stateSize" .)) dict | toJson }}
    {{- end }}
  - name: config
    configMap:
      name: {{ include "whalebridge.configMap" . | quote }}
  {{- range $index, $name := .Values.existingSecrets.files }}
  - name: secret-{{ $index }}
    secret:
      secretName: {{ $name | quote }}
      defaultMode: 288 # 0440: readable by the containers' group
  {{- end }}
{{- end }}

{{- /* The spec of the pods as JSON, with extraEnv, extraVolumes, extraVolumeMounts and extraPodSpec. */}}
{{- define "whalebridge.mergedPodSpec" -}}
{{- $spec := include "whalebridge.podSpec" . | fromYaml }}
{{- $bridge := dict "name" "bridge" "env" (default list .Values.extraEnv) "volumeMounts" (default list .Values.extraVolumeMounts) }}
{{- $extra := dict "containers" (list $bridge) "volumes" (default list .Values.extraVolumes) }}
{{- range list $extra (default dict .Values.extraPodSpec) }}
{{- $over := include "whalebridge.rendered" (dict "value" . "context" $) | fromJson }}
{{- $spec = include "whalebridge.merged" (dict "base" $spec "over" $over "name" "") | fromJson }}
{{- end }}
{{- toJson $spec }}
{{- end }}
