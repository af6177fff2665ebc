// SPDX-License-Identifier: Apache-2.0

// Package kube is the little of a Kubernetes client that the CLI needs: objects
// as JSON by path, and exec into a pod. The generated clientset would more than
// double the binary.
package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// maxObject bounds an answer of the API server in bytes: a list of pods of a
// large namespace fits.
const maxObject = 256 << 20

// Client speaks to one API server. It may be used concurrently.
type Client struct {
	cfg  *rest.Config
	base *url.URL
	http *http.Client
}

// Load finds a kubeconfig as kubectl does: the file given, else $KUBECONFIG,
// else ~/.kube/config; and in it the context given, else the current one.
func Load(kubeconfig, kubecontext string) (*Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	over := &clientcmd.ConfigOverrides{CurrentContext: kubecontext}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, over).ClientConfig()
	if err != nil {
		if clientcmd.IsEmptyConfig(err) || errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("kubeconfig: none found and no agent runs here; give --kubeconfig FILE or set KUBECONFIG")
		}
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return New(cfg)
}

// InCluster uses the service account of the pod that this runs in.
func InCluster() (*Client, error) {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("service account: %w", err)
	}
	return New(cfg)
}

// New returns a client for the server and credentials in cfg.
func New(cfg *rest.Config) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.UserAgent = "weft"
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: server %q: %w", cfg.Host, err)
	}
	return &Client{cfg: cfg, base: base, http: h}, nil
}

// Server returns the address of the API server, for messages.
func (c *Client) Server() string { return c.base.String() }

// StatusError is a refusal by the API server.
type StatusError struct {
	Code    int    // of HTTP
	Reason  string // NotFound, Forbidden, ...
	Message string
}

// Error returns the server's own sentence.
func (e *StatusError) Error() string { return e.Message }

// IsNotFound says whether err is the API server's "no such object".
func IsNotFound(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == http.StatusNotFound
}

// IsForbidden says whether err is the API server's "you may not".
func IsForbidden(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == http.StatusForbidden
}

// IsExists says whether err is the API server's "there is one already".
func IsExists(err error) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == http.StatusConflict
}

// Get reads the object or list at path ("/api/v1/nodes?limit=5") into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.Do(ctx, http.MethodGet, path, nil, out)
}

// Raw reads what stands at path, at most limit bytes of it.
func (c *Client) Raw(ctx context.Context, path string, limit int64) ([]byte, error) {
	resp, err := c.send(ctx, http.MethodGet, path, acceptJSON, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return b, fmt.Errorf("GET %s: %w", path, err)
	}
	return b, nil
}

// Do sends in (nil for none) and decodes the answer into out (nil to ignore it).
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	accept := acceptJSON
	if _, ok := out.(*metav1.PartialObjectMetadataList); ok {
		accept = acceptMetadata
	}
	resp, err := c.send(ctx, method, path, accept, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxObject))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxObject)).Decode(out); err != nil {
		return fmt.Errorf("%s %s: answer: %w", method, path, err)
	}
	return nil
}

// What is asked for: whole objects, or of lists the metadata only, where what
// the objects hold (secrets) must not even be sent.
const (
	acceptJSON     = "application/json"
	acceptMetadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

func (c *Client) send(ctx context.Context, method, path, accept string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url(path), body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Accept", accept)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.base.Host, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, statusError(resp, method, path)
}

func (c *Client) url(path string) string {
	return strings.TrimSuffix(c.base.String(), "/") + path
}

func statusError(resp *http.Response, method, path string) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var st metav1.Status
	e := &StatusError{Code: resp.StatusCode, Message: fmt.Sprintf("%s %s: %s", method, path, resp.Status)}
	if json.Unmarshal(b, &st) == nil && st.Message != "" {
		e.Reason, e.Message = string(st.Reason), st.Message
	}
	return e
}
