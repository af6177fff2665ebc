// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Programs of a pod's device, host's end. */

SEC("tcx/ingress")
int from_pod(struct __sk_buff *skb)
{
	return TCX_NEXT;
}

SEC("tcx/egress")
int to_pod(struct __sk_buff *skb)
{
	return TCX_NEXT;
}
