// SPDX-License-Identifier: Apache-2.0

// The CNCF distribution registry with what a test and a demonstration need: the file
// system driver, and no login or an htpasswd file. `registry htpasswd USER` reads a
// password from standard input and prints the line for such a file.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/bcrypt"
)

var htpasswd = &cobra.Command{
	Use:   "htpasswd USER",
	Short: "print the htpasswd line of USER with the password on standard input",
	Args:  cobra.ExactArgs(1),
	RunE: func(_ *cobra.Command, arguments []string) error {
		password, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		// Passwords here are random and live as long as a sandbox; a dear hash would be paid at every request.
		hash, err := bcrypt.GenerateFromPassword(password, bcrypt.MinCost)
		if err != nil {
			return err
		}
		fmt.Printf("%s:%s\n", arguments[0], hash)
		return nil
	},
}

func main() {
	registry.RootCmd.AddCommand(htpasswd)
	if err := registry.RootCmd.Execute(); err != nil {
		os.Exit(1)
	}
}
