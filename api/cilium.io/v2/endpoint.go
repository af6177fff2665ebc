// SPDX-License-Identifier: Apache-2.0

package v2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CiliumEndpoint shows the network attachment of one pod. It has the pod's
// name and namespace, is owned by the pod and is written by the agent of the
// pod's node. It has no spec: nobody configures a pod through it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,path=ciliumendpoints,singular=ciliumendpoint,shortName={cep,ciliumep},categories={cilium}
// +kubebuilder:storageversion
// +kubebuilder:metadata:labels="app.kubernetes.io/part-of=weft"
// +kubebuilder:printcolumn:name="Security Identity",type=integer,JSONPath=`.status.identity.id`,description="Numeric security identity"
// +kubebuilder:printcolumn:name="Ingress Enforcement",type=string,JSONPath=`.status.policy.ingress.state`,description="Whether policy is enforced on packets to the pod",priority=1
// +kubebuilder:printcolumn:name="Egress Enforcement",type=string,JSONPath=`.status.policy.egress.state`,description="Whether policy is enforced on packets from the pod",priority=1
// +kubebuilder:printcolumn:name="Endpoint State",type=string,JSONPath=`.status.state`,description="How far the endpoint has come"
// +kubebuilder:printcolumn:name="IPv4",type=string,JSONPath=`.status.networking.addressing[0].ipv4`,description="The pod's IPv4 address"
// +kubebuilder:printcolumn:name="IPv6",type=string,JSONPath=`.status.networking.addressing[0].ipv6`,description="The pod's IPv6 address"
type CiliumEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	// Status is all there is: what the agent has made for the pod.
	// +optional
	Status EndpointStatus `json:"status,omitzero"`
}

// CiliumEndpointList is a list of CiliumEndpoints.
//
// +kubebuilder:object:root=true
type CiliumEndpointList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []CiliumEndpoint `json:"items"`
}

// EndpointStatus describes an endpoint.
type EndpointStatus struct {
	// ID is the number of the endpoint on its node, as in `weft endpoint list`.
	// +optional
	ID int64 `json:"id,omitempty"`
	// Controllers lists what keeps failing for this endpoint.
	// +optional
	Controllers []ControllerStatus `json:"controllers,omitempty"`
	// ExternalIdentifiers are the names that others have for the endpoint.
	// +optional
	ExternalIdentifiers *EndpointIdentifiers `json:"external-identifiers,omitempty"`
	// Health sums up whether the endpoint works.
	// +optional
	Health *EndpointHealth `json:"health,omitempty"`
	// Identity is the security identity of the endpoint.
	// +optional
	Identity *EndpointIdentity `json:"identity,omitempty"`
	// Log holds the last few warnings and errors.
	// +optional
	Log []EndpointLogEntry `json:"log,omitempty"`
	// Networking holds the endpoint's addresses and its node.
	// +optional
	Networking *EndpointNetworking `json:"networking,omitempty"`
	// Encryption says how packets to this endpoint's node are encrypted.
	// +optional
	Encryption EncryptionSpec `json:"encryption,omitzero"`
	// Policy says what is enforced.
	// +optional
	Policy *EndpointPolicy `json:"policy,omitempty"`
	// State says how far the endpoint has come.
	// +optional
	State EndpointState `json:"state,omitempty"`
	// NamedPorts are the pod's named container ports, in order of name.
	// +optional
	NamedPorts []NamedPort `json:"named-ports,omitempty"`
	// ServiceAccount is the pod's service account.
	// +optional
	ServiceAccount string `json:"service-account,omitempty"`
}

// EndpointState says how far an endpoint has come.
//
// +kubebuilder:validation:Enum=creating;waiting-for-identity;not-ready;waiting-to-regenerate;regenerating;restoring;ready;disconnecting;disconnected;invalid
type EndpointState string

// States of an endpoint that Weft writes. The schema admits the others that
// Cilium's users know.
const (
	EndpointCreating           EndpointState = "creating"
	EndpointWaitingForIdentity EndpointState = "waiting-for-identity"
	EndpointReady              EndpointState = "ready"
	EndpointDisconnecting      EndpointState = "disconnecting"
)

// ControllerStatus describes one task that is done for an endpoint again and
// again.
type ControllerStatus struct {
	// Name of the task.
	// +optional
	Name string `json:"name,omitempty"`
	// Configuration says how often the task runs.
	// +optional
	Configuration *ControllerConfiguration `json:"configuration,omitempty"`
	// Status counts how it went.
	// +optional
	Status ControllerCounters `json:"status,omitzero"`
	// UUID tells one instance of the task from the next.
	// +optional
	UUID string `json:"uuid,omitempty"`
}

// ControllerConfiguration says how often a task runs.
type ControllerConfiguration struct {
	// ErrorRetry is set when the task is tried again after a failure.
	// +optional
	ErrorRetry bool `json:"error-retry,omitempty"`
	// ErrorRetryBase is the first pause after a failure, in nanoseconds.
	// +optional
	ErrorRetryBase int64 `json:"error-retry-base,omitempty"`
	// Interval is the pause between two runs, in nanoseconds.
	// +optional
	Interval int64 `json:"interval,omitempty"`
}

// ControllerCounters counts successes and failures of a task.
type ControllerCounters struct {
	// ConsecutiveFailureCount is the number of failures since the last success.
	// +optional
	ConsecutiveFailureCount int64 `json:"consecutive-failure-count,omitempty"`
	// FailureCount is the number of failures in all.
	// +optional
	FailureCount int64 `json:"failure-count,omitempty"`
	// LastFailureMsg is the error of the last failure.
	// +optional
	LastFailureMsg string `json:"last-failure-msg,omitempty"`
	// LastFailureTimestamp is in RFC 3339.
	// +optional
	LastFailureTimestamp string `json:"last-failure-timestamp,omitempty"`
	// LastSuccessTimestamp is in RFC 3339.
	// +optional
	LastSuccessTimestamp string `json:"last-success-timestamp,omitempty"`
	// SuccessCount is the number of successes in all.
	// +optional
	SuccessCount int64 `json:"success-count,omitempty"`
}

// EndpointIdentifiers are the names that others have for an endpoint.
type EndpointIdentifiers struct {
	// CNIAttachmentID is the sandbox id and the interface: "id:eth0".
	// +optional
	CNIAttachmentID string `json:"cni-attachment-id,omitempty"`
	// ContainerID is the sandbox id of the container runtime.
	// +optional
	ContainerID string `json:"container-id,omitempty"`
	// ContainerName is the runtime's name for the sandbox.
	// +optional
	ContainerName string `json:"container-name,omitempty"`
	// DockerEndpointID is not used by Weft.
	// +optional
	DockerEndpointID string `json:"docker-endpoint-id,omitempty"`
	// DockerNetworkID is not used by Weft.
	// +optional
	DockerNetworkID string `json:"docker-network-id,omitempty"`
	// K8sNamespace is the pod's namespace.
	// +optional
	K8sNamespace string `json:"k8s-namespace,omitempty"`
	// K8sPodName is the pod's name.
	// +optional
	K8sPodName string `json:"k8s-pod-name,omitempty"`
	// PodName is namespace/name of the pod.
	// +optional
	PodName string `json:"pod-name,omitempty"`
}

// EndpointHealth sums up whether an endpoint works.
type EndpointHealth struct {
	// BPF is the state of the endpoint's programs and map entries.
	// +optional
	BPF string `json:"bpf,omitempty"`
	// Connected says whether the endpoint can be reached.
	// +optional
	Connected bool `json:"connected,omitempty"`
	// OverallHealth is the worst of the parts.
	// +optional
	OverallHealth string `json:"overallHealth,omitempty"`
	// Policy is the state of policy enforcement.
	// +optional
	Policy string `json:"policy,omitempty"`
}

// EndpointIdentity is a security identity with the labels that it stands for.
type EndpointIdentity struct {
	// ID is the number. 1 to 255 are reserved and mean the same everywhere.
	// +optional
	ID int64 `json:"id,omitempty"`
	// Labels are SOURCE:KEY=VALUE, sorted; "reserved:init" for a reserved one.
	// +optional
	Labels []string `json:"labels,omitempty"`
}

// EndpointLogEntry is one change of an endpoint's state.
type EndpointLogEntry struct {
	// Code is "ok" or "failed".
	// +optional
	Code string `json:"code,omitempty"`
	// Message says what happened.
	// +optional
	Message string `json:"message,omitempty"`
	// State is the state that the change led to.
	// +optional
	State string `json:"state,omitempty"`
	// Timestamp is in RFC 3339.
	// +optional
	Timestamp string `json:"timestamp,omitempty"`
}

// EndpointNetworking says where an endpoint is.
type EndpointNetworking struct {
	// Addressing holds the endpoint's addresses; the first pair is the pod's.
	Addressing AddressPairList `json:"addressing"`
	// NodeIP is the address of the endpoint's node by which peers reach it.
	// +optional
	NodeIP string `json:"node,omitempty"`
}

// AddressPairList is a list of address pairs.
type AddressPairList []*AddressPair

// EndpointPolicy says what is enforced in each direction.
type EndpointPolicy struct {
	// Ingress is about packets to the endpoint.
	// +optional
	Ingress *EndpointPolicyDirection `json:"ingress,omitempty"`
	// Egress is about packets from the endpoint.
	// +optional
	Egress *EndpointPolicyDirection `json:"egress,omitempty"`
}

// EndpointPolicyState is the state of enforcement in one direction.
type EndpointPolicyState string

// States of enforcement, in the words that Cilium's users see in
// `kubectl get cep -o wide`.
const (
	PolicyEnforcing    EndpointPolicyState = "enforcing"
	PolicyNonEnforcing EndpointPolicyState = "non-enforcing"
	PolicyDisabled     EndpointPolicyState = "<status disabled>"
)

// EndpointPolicyDirection says what is enforced in one direction.
type EndpointPolicyDirection struct {
	// Enforcing is set when packets that no rule allows are dropped.
	Enforcing bool `json:"enforcing"`
	// State is the same in words.
	// +optional
	State EndpointPolicyState `json:"state,omitempty"`
	// Allowed lists the peers that may pass.
	// +optional
	Allowed []IdentityTuple `json:"allowed,omitempty"`
	// Denied lists the peers that may not pass, whatever is allowed.
	// +optional
	Denied []IdentityTuple `json:"denied,omitempty"`
	// Adding is obsolete and never written.
	// +optional
	Adding []IdentityTuple `json:"adding,omitempty"`
	// Removing is obsolete and never written.
	// +optional
	Removing []IdentityTuple `json:"removing,omitempty"`
}

// IdentityTuple is a peer and a port.
type IdentityTuple struct {
	// Identity is the peer's numeric identity, 0 for any.
	// +optional
	Identity uint64 `json:"identity,omitempty"`
	// IdentityLabels are the labels of that identity.
	// +optional
	IdentityLabels map[string]string `json:"identity-labels,omitempty"`
	// DestPort is a port, 0 for any.
	// +optional
	DestPort uint16 `json:"dest-port,omitempty"`
	// Protocol is an IP protocol number, 0 for any.
	// +optional
	Protocol uint8 `json:"protocol,omitempty"`
}

// NamedPort is a named port of a container.
type NamedPort struct {
	// Name of the port.
	// +optional
	Name string `json:"name,omitempty"`
	// Port is the number.
	// +optional
	Port uint16 `json:"port,omitempty"`
	// Protocol is TCP, UDP, SCTP or ANY.
	// +optional
	Protocol string `json:"protocol,omitempty"`
}
