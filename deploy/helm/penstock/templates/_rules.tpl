{{/* Generated from penstock_operator.plan.permissions by `make gen`; do not edit. */}}
{{- define "penstock.rules.namespaced" -}}
- apiGroups:
  - serving.penstock.dev
  resources:
  - llmservices
  verbs:
  - get
  - list
  - watch
- apiGroups:
  - serving.penstock.dev
  resources:
  - llmservices/status
  verbs:
  - patch
- apiGroups:
  - ''
  resources:
  - serviceaccounts
  verbs:
  - get
  - list
  - create
  - patch
  - delete
- apiGroups:
  - ''
  resources:
  - configmaps
  verbs:
  - get
  - list
  - create
  - patch
  - delete
- apiGroups:
  - ''
  resources:
  - services
  verbs:
  - get
  - list
  - create
  - patch
  - delete
- apiGroups:
  - ''
  resources:
  - persistentvolumeclaims
  verbs:
  - get
  - list
  - create
  - patch
  - delete
- apiGroups:
  - ''
  resources:
  - pods
  verbs:
  - get
  - list
  - watch
- apiGroups:
  - apps
  resources:
  - deployments
  verbs:
  - get
  - list
  - create
  - patch
  - delete
  - watch
- apiGroups:
  - apps
  resources:
  - controllerrevisions
  verbs:
  - get
  - list
  - create
  - patch
  - delete
- apiGroups:
  - policy
  resources:
  - poddisruptionbudgets
  verbs:
  - get
  - list
  - create
  - patch
  - delete
- apiGroups:
  - networking.k8s.io
  resources:
  - networkpolicies
  verbs:
  - get
  - list
  - create
  - patch
  - delete
- apiGroups:
  - monitoring.coreos.com
  resources:
  - podmonitors
  verbs:
  - get
  - list
  - create
  - patch
  - delete
- apiGroups:
  - ray.io
  resources:
  - rayservices
  verbs:
  - get
  - list
  - create
  - patch
  - delete
  - watch
- apiGroups:
  - ''
  resources:
  - pods/log
  verbs:
  - get
- apiGroups:
  - ''
  resources:
  - events
  verbs:
  - create
{{- end }}
{{- define "penstock.rules.own" -}}
- apiGroups:
  - coordination.k8s.io
  resources:
  - leases
  verbs:
  - get
  - create
  - update
{{- end }}
{{- define "penstock.rules.cluster" -}}
- apiGroups:
  - storage.k8s.io
  resources:
  - storageclasses
  verbs:
  - list
{{- end }}
