// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LeaseName is the Lease of the operator that leads.
const LeaseName = "weft-operator-resource-lock"

// Terms are the times of an election.
type Terms struct {
	Lease time.Duration // others wait so long after the last renewal
	Renew time.Duration // a leader that could not renew for so long steps down; less than Lease
	Retry time.Duration // between two looks
}

// DefaultTerms are those of Kubernetes' own controllers.
func DefaultTerms() Terms {
	return Terms{Lease: 15 * time.Second, Renew: 10 * time.Second, Retry: 2 * time.Second}
}

// Elector runs for the lead. It spares the API server two operators that do the
// same work; it does not keep a second one from writing, which the ledger does:
// a process may sleep at any line and wake up with its lease long gone. This is
// why it is not client-go's, whose package brings every typed client with it.
type Elector struct {
	Client    *Client
	Namespace string
	Identity  string // of this process, unique
	Terms     Terms
	Log       *slog.Logger

	leads atomic.Bool
	// What was seen of the Lease, and when: clocks of other machines are not
	// trusted, only that a Lease stays as it is.
	seen   string
	seenAt time.Time
}

// Leads reports whether this process leads.
func (e *Elector) Leads() bool { return e.leads.Load() }

// Run calls lead whenever this process has the lead, with a context that ends
// with it, until ctx ends.
func (e *Elector) Run(ctx context.Context, lead func(context.Context) error) error {
	tick := time.NewTicker(e.Terms.Retry)
	defer tick.Stop()
	for {
		if e.try(ctx) {
			if err := e.term(ctx, lead, tick.C); err != nil || ctx.Err() != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// term leads until the lease cannot be renewed or ctx ends.
func (e *Elector) term(ctx context.Context, lead func(context.Context) error, tick <-chan time.Time) error {
	e.leads.Store(true)
	e.Log.Info("leads", "identity", e.Identity)
	leadCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- lead(leadCtx) }()
	renewed := time.Now()
	var err error
	ended := false
loop:
	for {
		select {
		case <-ctx.Done():
			break loop
		case err = <-done:
			ended = true
			break loop
		case <-tick:
			if e.try(ctx) {
				renewed = time.Now()
			} else if time.Since(renewed) > e.Terms.Renew {
				break loop
			}
		}
	}
	cancel()
	if !ended {
		err = <-done
	}
	e.leads.Store(false)
	e.Log.Info("leads no more", "identity", e.Identity)
	if ctx.Err() != nil {
		e.release()
	}
	return err
}

// try takes or renews the lease.
func (e *Elector) try(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, e.Terms.Renew/2)
	defer cancel()
	held, err := e.take(ctx, e.Identity)
	if err != nil {
		e.Log.Debug("lease cannot be taken", "error", err)
	}
	return held
}

// release lets the next operator begin at once.
func (e *Elector) release() {
	ctx, cancel := context.WithTimeout(context.Background(), e.Terms.Retry)
	defer cancel()
	if _, err := e.take(ctx, ""); err != nil {
		e.Log.Debug("lease cannot be released", "error", err)
	}
}

// take writes holder into the lease if it is ours, free or run out.
func (e *Elector) take(ctx context.Context, holder string) (bool, error) {
	rest, ns := e.Client.coordination, e.Namespace
	now := metav1.NowMicro()
	seconds := max(1, int32(e.Terms.Lease/time.Second))
	var l coordinationv1.Lease
	err := rest.Get().Namespace(ns).Resource("leases").Name(LeaseName).Do(ctx).Into(&l)
	if apierrors.IsNotFound(err) && holder == "" {
		return false, nil
	}
	if apierrors.IsNotFound(err) {
		l = coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: LeaseName, Namespace: ns, Labels: map[string]string{"app.kubernetes.io/part-of": "weft"}},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now},
		}
		err = rest.Post().Namespace(ns).Resource("leases").Body(&l).Do(ctx).Error()
		return err == nil, wrapLease("create", err)
	}
	if err != nil {
		return false, wrapLease("get", err)
	}
	cur := ""
	if l.Spec.HolderIdentity != nil {
		cur = *l.Spec.HolderIdentity
	}
	if l.ResourceVersion != e.seen {
		e.seen, e.seenAt = l.ResourceVersion, time.Now()
	}
	switch {
	case cur == e.Identity:
	case holder == "":
		return false, nil // nothing of ours to release
	case cur == "" || time.Since(e.seenAt) >= e.Terms.Lease:
		l.Spec.AcquireTime = &now
		transitions := int32(1)
		if l.Spec.LeaseTransitions != nil {
			transitions = *l.Spec.LeaseTransitions + 1
		}
		l.Spec.LeaseTransitions = &transitions
	default:
		return false, nil
	}
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &holder, &seconds, &now
	l.ManagedFields = nil
	err = rest.Put().Namespace(ns).Resource("leases").Name(LeaseName).Body(&l).Do(ctx).Error()
	return err == nil, wrapLease("update", err)
}

func wrapLease(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s lease %s: %w", verb, LeaseName, err)
}
