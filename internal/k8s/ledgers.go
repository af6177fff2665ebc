// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ciliumv2alpha1 "github.com/weft-net/weft/api/cilium.io/v2alpha1"
	weftv1alpha1 "github.com/weft-net/weft/api/weft.dev/v1alpha1"
)

// Ledgers are the ledgers of all pools, read as one. It has the methods of the
// reader of one ledger, which ignore the pool's name.
type Ledgers struct{ Client *Client }

// Ledger reads all ledgers. A range that two of them give away stands in none,
// as nobody may use it. The error wraps ErrNoLedger where there is no ledger.
func (l Ledgers) Ledger(ctx context.Context, _ string) (*Ledger, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var list weftv1alpha1.PodCIDRLedgerList
	err := l.Client.weft.Get().Resource(weftv1alpha1.PodCIDRLedgerResource).Do(ctx).Into(&list)
	if err = l.Client.ledgerError("of all pools", err); err != nil {
		return nil, err
	}
	out := &Ledger{Grants: map[string][]netip.Prefix{}, Pools: map[netip.Prefix]string{}, Seqs: map[string]uint64{}}
	var marks []LedgerMark
	for i := range list.Items {
		obj := &list.Items[i]
		if !owned(obj.Labels) {
			continue
		}
		one, err := readLedger(obj)
		if err != nil {
			return nil, err
		}
		marks = append(marks, LedgerMark{Version: obj.Name + "=" + one.Version, Seq: one.Seq})
		for node, ranges := range one.Grants {
			for _, r := range ranges {
				if other, twice := out.Pools[r]; twice {
					return nil, fmt.Errorf("PodCIDRLedger %s and %s both give %s away: take it out of one of the pools", other, obj.Name, r)
				}
				out.Pools[r] = obj.Name
				out.Grants[node] = append(out.Grants[node], r)
			}
		}
		out.Quarantine = append(out.Quarantine, one.Quarantine...)
		out.Seqs[obj.Name] = one.Seq
	}
	out.LedgerMark, err = markOf(marks)
	return out, err
}

// LedgerMark tells one state of all ledgers from another.
func (l Ledgers) LedgerMark(ctx context.Context, _ string) (LedgerMark, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var list metav1.PartialObjectMetadataList
	err := l.Client.weft.Get().Resource(weftv1alpha1.PodCIDRLedgerResource).
		SetHeader("Accept", acceptMetadataList).Do(ctx).Into(&list)
	if err = l.Client.ledgerError("of all pools", err); err != nil {
		return LedgerMark{}, err
	}
	var marks []LedgerMark
	for _, m := range list.Items {
		if owned(m.Labels) {
			seq, _ := strconv.ParseUint(m.Annotations[weftv1alpha1.ReleaseSeqAnnotation], 10, 64)
			marks = append(marks, LedgerMark{Version: m.Name + "=" + m.ResourceVersion, Seq: seq})
		}
	}
	return markOf(marks)
}

// markOf makes one mark of many.
func markOf(marks []LedgerMark) (LedgerMark, error) {
	if len(marks) == 0 {
		return LedgerMark{}, fmt.Errorf("PodCIDRLedger of any pool: %w", ErrNoLedger)
	}
	var out LedgerMark
	var versions []string
	for _, m := range marks {
		versions = append(versions, m.Version)
		out.Seq += m.Seq
	}
	slices.Sort(versions)
	out.Version = strings.Join(versions, ",")
	return out, nil
}

// PoolChoice reads which pools a pod chooses: by its own annotations, or else by
// those of its namespace; "" where neither says anything. A pod that the API server
// does not know chooses nothing itself.
func (c *Client) PoolChoice(ctx context.Context, namespace, pod string) (v4, v6 string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	meta := func(resource, ns, name string) (map[string]string, error) {
		var m metav1.PartialObjectMetadata
		err := c.core.Get().NamespaceIfScoped(ns, ns != "").Resource(resource).Name(name).
			SetHeader("Accept", acceptMetadata).Do(ctx).Into(&m)
		if apierrors.IsNotFound(err) {
			return nil, nil // of a file on the node, and not shown at the API server yet
		}
		c.conn.note(resource, err)
		return m.Annotations, wrap(err, "get %s %s/%s", resource, ns, name)
	}
	own, err := meta(corev1.ResourcePods.String(), namespace, pod)
	if err != nil {
		return "", "", err
	}
	v4, v6 = choice(own)
	if v4 != "" && v6 != "" {
		return v4, v6, nil
	}
	all, err := meta("namespaces", "", namespace)
	if err != nil {
		return "", "", err
	}
	ns4, ns6 := choice(all)
	return cmp.Or(v4, ns4), cmp.Or(v6, ns6), nil
}

func choice(annotations map[string]string) (v4, v6 string) {
	both := annotations[ciliumv2alpha1.PoolAnnotation]
	return cmp.Or(annotations[ciliumv2alpha1.IPv4PoolAnnotation], both), cmp.Or(annotations[ciliumv2alpha1.IPv6PoolAnnotation], both)
}
