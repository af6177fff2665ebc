// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/weft-net/weft/lab/internal/wire"
)

// Client asks the API server from inside the control plane's network namespace.
type Client struct {
	http   *http.Client
	server string
}

// NewClient uses the admin's certificate.
func (c *Cluster) NewClient(netnsPath string) (*Client, error) {
	cert, err := tls.LoadX509KeyPair(c.PKI.File(Admin+".crt"), c.PKI.File(Admin+".key"))
	if err != nil {
		return nil, fmt.Errorf("api client: %w", err)
	}
	ca, err := os.ReadFile(c.PKI.File("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("api client: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	dial := func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = wire.In(netnsPath, func() error {
			d := net.Dialer{Timeout: 2 * time.Second}
			conn, err = d.DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
	return &Client{server: c.Server(), http: &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext: dial, ForceAttemptHTTP2: true,
			TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}},
		},
	}}, nil
}

// Get reads a path of the API. With a nil result only the status counts.
func (c *Client) Get(ctx context.Context, path string, result any) error {
	return c.do(ctx, http.MethodGet, path, result)
}

// Delete deletes an object; one that is not there is no error.
func (c *Client) Delete(ctx context.Context, path string) error {
	err := c.do(ctx, http.MethodDelete, path, nil)
	var s statusError
	if errors.As(err, &s) && s.code == http.StatusNotFound {
		return nil
	}
	return err
}

type statusError struct {
	path string
	code int
	body string
}

func (e statusError) Error() string {
	return fmt.Sprintf("api server: %s: %d %s", e.path, e.code, e.body)
}

func (c *Client) do(ctx context.Context, method, path string, result any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.server+path, nil)
	if err != nil {
		return fmt.Errorf("api server: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("api server: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("api server: %s: %w", path, err)
	}
	if resp.StatusCode >= 300 {
		return statusError{path, resp.StatusCode, strings.TrimSpace(string(b[:min(len(b), 300)]))}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(b, result); err != nil {
		return fmt.Errorf("api server: %s: %w", path, err)
	}
	return nil
}

// Node is the part of a Node object that a lab looks at.
type Node struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Conditions []Condition `json:"conditions"`
	} `json:"status"`
}

// Condition of an object.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

// Ready says whether the node is, and if not what it says.
func (n Node) Ready() (bool, string) {
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True", c.Message
		}
	}
	return false, "kubelet has not reported yet"
}

// Nodes lists all nodes by name.
func (c *Client) Nodes(ctx context.Context) (map[string]Node, error) {
	var list struct {
		Items []Node `json:"items"`
	}
	if err := c.Get(ctx, "/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	nodes := map[string]Node{}
	for _, n := range list.Items {
		nodes[n.Metadata.Name] = n
	}
	return nodes, nil
}

// DeploymentReady says whether all replicas of a deployment are available.
func (c *Client) DeploymentReady(ctx context.Context, namespace, name string) (bool, string) {
	var d struct {
		Spec   struct{ Replicas int } `json:"spec"`
		Status struct {
			AvailableReplicas int `json:"availableReplicas"`
		} `json:"status"`
	}
	if err := c.Get(ctx, "/apis/apps/v1/namespaces/"+namespace+"/deployments/"+name, &d); err != nil {
		return false, err.Error()
	}
	return d.Spec.Replicas > 0 && d.Status.AvailableReplicas >= d.Spec.Replicas,
		fmt.Sprintf("%d of %d replicas available", d.Status.AvailableReplicas, d.Spec.Replicas)
}
