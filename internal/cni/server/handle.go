// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/cni"
	"github.com/weft-net/weft/internal/datapath/link"
	"github.com/weft-net/weft/internal/endpoint"
	"github.com/weft-net/weft/internal/ipam"
	"github.com/weft-net/weft/internal/table"
)

// handle answers one request.
func (s *Server) handle(ctx context.Context, req cni.Request) *cni.Response {
	switch req.Command {
	case "ADD":
		return s.add(ctx, req)
	case "DEL":
		return failed(s.del(ctx, req))
	case "CHECK":
		return failed(s.p.Endpoints.Check(ctx, req.ContainerID, req.IfName, req.PrevIPs))
	case "GC":
		valid := make([]endpoint.Attachment, len(req.Valid))
		for i, a := range req.Valid {
			valid[i] = endpoint.Attachment(a)
		}
		return failed(s.p.Endpoints.GC(ctx, valid))
	case "STATUS":
		return &cni.Response{Error: s.p.Status()}
	}
	return &cni.Response{Error: &cni.Error{
		Code: cni.CodeEnvironment, Msg: fmt.Sprintf("CNI_COMMAND %q is unknown", req.Command),
		Details: "are weft-cni and the agent of one version?",
	}}
}

func (s *Server) add(ctx context.Context, req cni.Request) *cni.Response {
	pod, err := cni.ParseArgs(req.Args)
	if err != nil {
		return &cni.Response{Error: &cni.Error{Code: cni.CodeEnvironment, Msg: err.Error()}}
	}
	// An old DEL of this attachment must not hit what is made now.
	if err := s.settle(ctx, cni.Attachment{ContainerID: req.ContainerID, IfName: req.IfName}); err != nil {
		return failed(err)
	}
	ep, err := s.p.Endpoints.Add(ctx, endpoint.AddRequest{
		Kind: table.EndpointPod, ContainerID: req.ContainerID, IfName: req.IfName, Netns: req.Netns,
		Namespace: pod.Namespace, Pod: pod.Name, PodUID: pod.UID,
	})
	s.note(err)
	if err != nil {
		return failed(err)
	}
	res := &cni.Result{HostIfName: ep.HostIfName, HostMAC: ep.HostMAC, MAC: ep.MAC, MTU: ep.MTU}
	for _, a := range []netip.Addr{ep.IPv4, ep.IPv6} {
		if a.IsValid() {
			res.IPs = append(res.IPs, a)
			res.Gateways = append(res.Gateways, link.Gateway(a))
		}
	}
	return &cni.Response{Result: res}
}

// note keeps AddFailingSince. What is wrong with one pod says nothing about the
// node.
func (s *Server) note(err error) {
	var ns *link.NetnsError
	if errors.As(err, &ns) || errors.Is(err, link.ErrIfNameTaken) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.failingSince = time.Time{}
	case s.failingSince.IsZero():
		s.failingSince = time.Now()
	}
}

func (s *Server) del(ctx context.Context, req cni.Request) error {
	if req.ContainerID == "" || req.IfName == "" {
		return &cni.Error{Code: cni.CodeEnvironment, Msg: "DEL: CNI_CONTAINERID and CNI_IFNAME are required"}
	}
	return s.p.Endpoints.Delete(ctx, req.ContainerID, req.IfName)
}

// failed makes a response of an error; nil makes one of success.
func failed(err error) *cni.Response {
	if err == nil {
		return &cni.Response{}
	}
	if own, ok := errors.AsType[*cni.Error](err); ok {
		return &cni.Response{Error: own}
	}
	return &cni.Response{Error: &cni.Error{Code: codeOf(err), Msg: err.Error()}}
}

// codeOf chooses the error code that tells a runtime most.
func codeOf(err error) uint {
	var (
		exhausted *ipam.ExhaustedError
		hold      *ipam.HoldError
		netns     *link.NetnsError
		state     *endpoint.StateError
	)
	switch {
	case errors.Is(err, endpoint.ErrNoPodCIDR), errors.As(err, &exhausted), errors.As(err, &hold), errors.Is(err, context.DeadlineExceeded):
		return cni.CodeTryAgain
	case errors.As(err, &netns):
		return cni.CodeNetns
	case errors.As(err, &state):
		return cni.CodeIO
	case errors.Is(err, endpoint.ErrUnknown):
		return cni.CodeUnknown
	}
	return cni.CodeInternal
}
