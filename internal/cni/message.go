// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// WriteMessage writes v as one message.
func WriteMessage(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("message: %w", err)
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("message: %d bytes are more than the limit of %d", len(b), MaxMessage)
	}
	// One write, so that the other end never sees a length without a body.
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b)))
	if _, err := w.Write(append(frame, b...)); err != nil {
		return fmt.Errorf("message: %w", err)
	}
	return nil
}

// ReadMessage reads one message into v. A length beyond MaxMessage is refused
// before anything is allocated for it.
func ReadMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("message length: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return fmt.Errorf("message: %d bytes are more than the limit of %d", n, MaxMessage)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("message body of %d bytes: %w", n, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("message body: %w", err)
	}
	return nil
}
