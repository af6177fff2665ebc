// SPDX-License-Identifier: Apache-2.0

//go:build linux

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command floor is the least that a CNI plugin in Go can be: it starts, says over
// a socket which network namespace it was called for, and waits for an answer.
// The benchmark executes it in place of weft-cni, to tell what of a burst is the
// machine's.
package main

import (
	"os"
	"syscall"
)

func main() {
	if err := ask(os.Args[1], os.Getenv("CNI_NETNS")); err != nil {
		println("floor:", err.Error())
		os.Exit(1)
	}
}

func ask(socket, netns string) error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		return err
	}
	if _, err := syscall.Write(fd, []byte(netns)); err != nil {
		return err
	}
	n, err := syscall.Read(fd, make([]byte, 1))
	if err == nil && n == 0 {
		err = syscall.EPIPE
	}
	return err
}
