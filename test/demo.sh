#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# demo.sh up NAME NODES: a Kubernetes cluster on this machine with Weft, tested
# and left running. demo.sh down NAME: the end of it.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${2:?name of the lab}
if [ "$(id -u)" -ne 0 ]; then
	echo "demo: needs root: it makes network namespaces, mounts and cgroups (sudo make demo)" >&2
	exit 1
fi

down() {
	[ -x build/bin/weft-lab ] || make build
	build/bin/weft-lab --name "$name" down
	echo "demo: lab $name is gone; compiled programs stay in the cache, so that the next one is up within a minute"
}

up() {
	local nodes=$1
	make deps
	make build/tools/helm
	test/step.sh "programs and image" make image
	echo "Kubernetes is compiled from source the first time: about 8 minutes on 2 cores."
	test/step.sh "Kubernetes" build/bin/weft-lab build
	if build/bin/weft-lab list | grep -qx "$name"; then
		echo "==> lab $name runs already: it is kept, and Weft in it is brought up to date"
	else
		test/step.sh "lab $name, $nodes nodes" build/bin/weft-lab --name "$name" up --nodes "$nodes" --cni weft
	fi
	test/step.sh "install" test/install.sh "$name"
	# From the lab's host outside of the cluster, so that the paths between both are tried, too.
	local config
	config=$(build/bin/weft-lab --name "$name" kubeconfig)
	test/step.sh "connectivity test" build/bin/weft-lab --name "$name" exec client -- \
		env KUBECONFIG="$config" build/bin/weft connectivity test --from-outside
	cat <<-EOF

		The cluster goes on running. Try:

		  alias lab='build/bin/weft-lab --name $name'
		  lab run -- build/bin/weft status
		  lab run -- kubectl get nodes,ciliumnodes -o wide
		  lab run -- build/bin/weft monitor
		  lab exec n1 -- ip route show proto 87
		  make demo-down
	EOF
}

case ${1:-} in
up) up "${3:-3}" ;;
down) down ;;
*)
	echo "usage: demo.sh up|down NAME [NODES]" >&2
	exit 2
	;;
esac
