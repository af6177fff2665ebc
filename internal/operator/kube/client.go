// SPDX-License-Identifier: Apache-2.0

// Package kube is the operator's side of the Kubernetes API: a cache of Nodes and
// CiliumNodes cut down to what allocation looks at, fresh reads of everything that
// could forbid a range, and the operator's few writes. Each write names the version
// of the object that it was computed from, so that a process that slept between
// its read and its write changes nothing.
//
// Nothing here waits for the API server when it is made. Objects without the label
// app.kubernetes.io/part-of=weft are never changed.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
	"k8s.io/klog/v2"

	ciliumv2 "github.com/weft-net/weft/api/cilium.io/v2"
	weftv1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// CredentialsDir is where the kubelet mounts a service account.
const CredentialsDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// requestTimeout bounds one call, watches apart.
const requestTimeout = 10 * time.Second

// ErrNotOurs is returned for an object that carries no label of Weft and is
// therefore left as it is.
var ErrNotOurs = errors.New("was not made by Weft (label " + ciliumv2.PartOfLabel + "=" + ciliumv2.PartOfValue + " is missing): delete it if nothing else needs it")

// Config says where the API server is and who we are.
type Config struct {
	// Server overrides KUBERNETES_SERVICE_HOST and _PORT: https://HOST:PORT.
	Server string
	// CredentialsDir holds ca.crt and token; the token is read anew as it changes.
	CredentialsDir string
	UserAgent      string
	Log            *slog.Logger
	// Wrap is put around the transport, nil for none. Tests count and cut there.
	Wrap transport.WrapperFunc
}

// Client makes the operator's calls.
type Client struct {
	log          *slog.Logger
	http         *http.Client
	server       string
	core         *rest.RESTClient
	networking   *rest.RESTClient
	coordination *rest.RESTClient
	cilium       *rest.RESTClient
	weft         *rest.RESTClient
	params       runtime.ParameterCodec
}

// NewClient prepares the clients. It makes no call.
func NewClient(cfg Config) (*Client, error) {
	server := cfg.Server
	if server == "" {
		host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
		if host == "" || port == "" {
			return nil, errors.New("kubernetes API: no address: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, as they are in every pod: set k8sServiceHost and k8sServicePort, or run the operator as a pod")
		}
		server = "https://" + net.JoinHostPort(host, port)
	}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	if err := errors.Join(corev1.AddToScheme(scheme), networkingv1.AddToScheme(scheme), coordinationv1.AddToScheme(scheme),
		ciliumv2.AddToScheme(scheme), weftv1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("kubernetes API: %w", err)
	}
	base := &rest.Config{
		Host:            server,
		BearerTokenFile: filepath.Join(cfg.CredentialsDir, "token"),
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(cfg.CredentialsDir, "ca.crt")},
		UserAgent:       cfg.UserAgent,
		WrapTransport:   cfg.Wrap,
		// No limit on this side: writes are bounded by the number of writers, and
		// the API server queues what it cannot take (priority and fairness).
		QPS: -1,
	}
	httpClient, err := rest.HTTPClientFor(base)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API %s: credentials in %s: %w: is the service account mounted?", server, cfg.CredentialsDir, err)
	}
	c := &Client{log: cfg.Log, http: httpClient, server: server, params: runtime.NewParameterCodec(scheme)}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	for _, r := range []struct {
		to    **rest.RESTClient
		path  string
		gv    schema.GroupVersion
		proto bool
	}{
		// Nodes carry long lists of images; protobuf halves what decoding them costs.
		{&c.core, "/api", corev1.SchemeGroupVersion, true},
		{&c.networking, "/apis", networkingv1.SchemeGroupVersion, true},
		{&c.coordination, "/apis", coordinationv1.SchemeGroupVersion, true},
		{&c.cilium, "/apis", ciliumv2.SchemeGroupVersion(), false},
		{&c.weft, "/apis", weftv1.SchemeGroupVersion(), false},
	} {
		rc := rest.CopyConfig(base)
		rc.APIPath, rc.GroupVersion, rc.NegotiatedSerializer, rc.ContentType = r.path, &r.gv, codecs, runtime.ContentTypeJSON
		if r.proto {
			rc.ContentType = runtime.ContentTypeProtobuf
			rc.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
		}
		if *r.to, err = rest.RESTClientForConfigAndClient(rc, httpClient); err != nil {
			return nil, fmt.Errorf("kubernetes API %s: %w", server, err)
		}
	}
	return c, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Server is the address of the API server.
func (c *Client) Server() string { return c.server }

// RouteLogs sends what client-go logs through log. It sets klog's one logger,
// and so belongs into a main function.
func RouteLogs(log *slog.Logger) { klog.SetSlogLogger(log) }

func limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, requestTimeout)
}

func owned(labels map[string]string) bool {
	return labels[ciliumv2.PartOfLabel] == ciliumv2.PartOfValue
}

// Explain adds to an error of the API server what to do about it.
func Explain(err error) string {
	switch {
	case apierrors.IsUnauthorized(err):
		return err.Error() + ": the service account's token is not accepted: restart the operator's pod"
	case apierrors.IsForbidden(err):
		return err.Error() + ": apply the chart's roles of cilium-operator again"
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer within %s: is the address right, and does a firewall drop it?", requestTimeout)
	}
	return err.Error()
}
