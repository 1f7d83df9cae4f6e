// SPDX-License-Identifier: Apache-2.0

// The CNCF distribution registry with what a test and a demonstration need: the file
// system driver, and no login or an htpasswd file.
package main

import (
	"os"

	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

func main() {
	if err := registry.RootCmd.Execute(); err != nil {
		os.Exit(1)
	}
}
