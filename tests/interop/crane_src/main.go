// SPDX-License-Identifier: Apache-2.0

// Crane as its authors publish it, at the version that go.mod names.
package main

import (
	"context"
	"os"
	"os/signal"

	"github.com/google/go-containerregistry/cmd/crane/cmd"
	"github.com/google/go-containerregistry/pkg/logs"
)

func main() {
	logs.Warn.SetOutput(os.Stderr)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := cmd.Root.ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}
