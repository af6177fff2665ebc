// SPDX-License-Identifier: Apache-2.0

// Package pki makes the certificates, keys and kubeconfigs of a lab's cluster.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/weft-net/weft/lab/internal/state"
)

// validity of everything: a lab does not live longer.
const validity = 365 * 24 * time.Hour

// Store is a folder of PEM files NAME.crt and NAME.key.
type Store struct{ Dir string }

// Names of the two authorities.
const (
	ClusterCA = "ca"
	FrontCA   = "front-proxy-ca"
)

// Request describes a certificate. IPs and DNS are its alternative names.
type Request struct {
	Name         string // of the files
	CN           string
	Organization string
	IPs          []string
	DNS          []string
	CA           string // default ClusterCA
}

// File is the path of a file in the store.
func (s Store) File(name string) string { return filepath.Join(s.Dir, name) }

// Init makes both authorities and the key that signs service account tokens
// (sa.key, sa.pub).
func (s Store) Init() error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	for _, name := range []string{ClusterCA, FrontCA} {
		t, err := template(pkix.Name{CommonName: name})
		if err != nil {
			return err
		}
		t.IsCA, t.BasicConstraintsValid = true, true
		t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("certificate %s: %w", name, err)
		}
		if err := s.sign(name, t, t, key, key); err != nil {
			return err
		}
	}
	return s.serviceAccountKey()
}

func (s Store) serviceAccountKey() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("service account key: %w", err)
	}
	pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("service account key: %w", err)
	}
	return errors.Join(
		s.write("sa.key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)),
		s.write("sa.pub", "PUBLIC KEY", pub))
}

func template(subject pkix.Name) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", subject.CommonName, err)
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity)}, nil
}

// Issue makes a certificate for servers and clients alike.
func (s Store) Issue(r Request) error {
	ca := r.CA
	if ca == "" {
		ca = ClusterCA
	}
	parent, parentKey, err := s.load(ca)
	if err != nil {
		return err
	}
	subject := pkix.Name{CommonName: r.CN}
	if r.Organization != "" {
		subject.Organization = []string{r.Organization}
	}
	t, err := template(subject)
	if err != nil {
		return err
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	t.DNSNames = r.DNS
	for _, ip := range r.IPs {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(ip))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", r.Name, err)
	}
	return s.sign(r.Name, t, parent, key, parentKey)
}

func (s Store) sign(name string, t, parent *x509.Certificate, key *ecdsa.PrivateKey, parentKey crypto.Signer) error {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, parentKey)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", name, err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", name, err)
	}
	return errors.Join(s.write(name+".key", "EC PRIVATE KEY", keyDER), s.write(name+".crt", "CERTIFICATE", der))
}

func (s Store) write(name, kind string, der []byte) error {
	return state.WriteFile(s.File(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func (s Store) block(name string) ([]byte, error) {
	b, err := os.ReadFile(s.File(name))
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	p, _ := pem.Decode(b)
	if p == nil {
		return nil, fmt.Errorf("certificate %s: no PEM block", name)
	}
	return p.Bytes, nil
}

func (s Store) load(name string) (*x509.Certificate, crypto.Signer, error) {
	certDER, err := s.block(name + ".crt")
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := s.block(name + ".key")
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	key, err := x509.ParseECPrivateKey(keyDER)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	return cert, key, nil
}

// Kubeconfig writes a kubeconfig that holds all it needs.
func (s Store) Kubeconfig(path, cluster, server, user string) error {
	encoded := map[string]string{}
	for _, f := range []string{ClusterCA + ".crt", user + ".crt", user + ".key"} {
		b, err := os.ReadFile(s.File(f))
		if err != nil {
			return fmt.Errorf("kubeconfig %s: %w", path, err)
		}
		encoded[f] = base64.StdEncoding.EncodeToString(b)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster:
    server: %[2]s
    certificate-authority-data: %[3]s
users:
- name: %[4]s
  user:
    client-certificate-data: %[5]s
    client-key-data: %[6]s
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[4]s}
current-context: %[1]s
`, cluster, server, encoded[ClusterCA+".crt"], user, encoded[user+".crt"], encoded[user+".key"])
	return state.WriteFile(path, []byte(text), 0o600)
}
