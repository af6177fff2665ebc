// SPDX-License-Identifier: Apache-2.0

// Package k8s is the agent's side of the Kubernetes API: reflectors fill the
// tables nodes, remote-pods, services and endpointslices, and writers publish what this node has. It is
// the only package of the agent that imports client-go, and it takes no more of
// it than REST clients and reflectors: the full client set would cost more
// memory than all else in the agent.
//
// Nothing here waits for the API server when it is made. All calls may fail at
// any moment; readers and writers go on trying, each with its own delay, and the
// tables keep what was last known.
//
// What Weft makes carries the label app.kubernetes.io/part-of=weft. Objects of
// the kinds CiliumNode and CiliumEndpoint without it are never changed.
package k8s

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// CredentialsDir is where the kubelet mounts a service account.
const CredentialsDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// AgentNotReadyTaint keeps pods off a node until its agent has proven it.
const AgentNotReadyTaint = "node.cilium.io/agent-not-ready"

// requestTimeout bounds one call, watches apart.
const requestTimeout = 10 * time.Second

// What the API server is asked for where names, labels and annotations are
// enough: an object's metadata, and that of a list.
const (
	acceptMetadata     = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	acceptMetadataList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

// Config says where the API server is and who we are.
type Config struct {
	NodeName string
	// Server overrides KUBERNETES_SERVICE_HOST and _PORT: https://HOST:PORT.
	Server string
	// CredentialsDir holds ca.crt and token; the token is read anew as it changes.
	CredentialsDir string
	// ClusterPool: nodes' pod ranges stand in their CiliumNodes, where the
	// operator writes them, and not in Node.spec.podCIDRs. MultiPool: they are
	// those of named pools.
	ClusterPool bool
	MultiPool   bool
	UserAgent   string
	Log         *slog.Logger
}

// Client makes calls to the API server and remembers how they went.
type Client struct {
	node      string
	log       *slog.Logger
	http      *http.Client
	core      *rest.RESTClient
	discovery *rest.RESTClient
	cilium    *rest.RESTClient
	weft      *rest.RESTClient
	params    runtime.ParameterCodec
	conn      *connection
	pool      bool // Config.ClusterPool or Config.MultiPool
	multi     bool // Config.MultiPool
}

// NewClient prepares the clients. It makes no call.
func NewClient(cfg Config) (*Client, error) {
	server := cfg.Server
	if server == "" {
		host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
		if host == "" || port == "" {
			return nil, errors.New("kubernetes API: no address: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, as they are in every pod: set k8sServiceHost and k8sServicePort, or run the agent as a pod")
		}
		server = "https://" + net.JoinHostPort(host, port)
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, fmt.Errorf("kubernetes API: %w", err)
	}
	base := &rest.Config{
		Host:            server,
		BearerTokenFile: filepath.Join(cfg.CredentialsDir, "token"),
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(cfg.CredentialsDir, "ca.crt")},
		UserAgent:       cfg.UserAgent,
		QPS:             50,
		Burst:           200,
	}
	httpClient, err := rest.HTTPClientFor(base)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API %s: credentials in %s: %w: is the service account mounted?", server, cfg.CredentialsDir, err)
	}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	restFor := func(path string, gv schema.GroupVersion, contentType string) (*rest.RESTClient, error) {
		c := rest.CopyConfig(base)
		c.APIPath, c.GroupVersion, c.NegotiatedSerializer = path, &gv, codecs
		c.ContentType = contentType
		if contentType != runtime.ContentTypeJSON {
			c.AcceptContentTypes = contentType + "," + runtime.ContentTypeJSON
		}
		return rest.RESTClientForConfigAndClient(c, httpClient)
	}
	// Nodes carry long lists of images; protobuf halves what decoding them costs.
	core, err := restFor("/api", corev1.SchemeGroupVersion, runtime.ContentTypeProtobuf)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API %s: %w", server, err)
	}
	discovery, err := restFor("/apis", discoveryv1.SchemeGroupVersion, runtime.ContentTypeProtobuf)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API %s: %w", server, err)
	}
	cilium, err := restFor("/apis", ciliumv2.SchemeGroupVersion(), runtime.ContentTypeJSON)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API %s: %w", server, err)
	}
	weft, err := restFor("/apis", weftv1alpha1.SchemeGroupVersion(), runtime.ContentTypeJSON)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API %s: %w", server, err)
	}
	return &Client{
		node: cfg.NodeName, log: cfg.Log, http: httpClient, core: core, discovery: discovery, cilium: cilium, weft: weft,
		params: runtime.NewParameterCodec(scheme), conn: newConnection(server), pool: cfg.ClusterPool || cfg.MultiPool, multi: cfg.MultiPool,
	}, nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return scheme, errors.Join(metav1.AddMetaToScheme(scheme), corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme), ciliumv2.AddToScheme(scheme), weftv1alpha1.AddToScheme(scheme))
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Connection tells how calls went lately.
func (c *Client) Connection() Connection { return c.conn.state() }

// RouteLogs sends what client-go logs through log. It sets klog's one logger,
// and so belongs into a main function.
func RouteLogs(log *slog.Logger) { klog.SetSlogLogger(log) }
