/* SPDX-License-Identifier: Apache-2.0 */
/* An application is one function; app.c calls it for every character that the serial line brings. */
#ifndef APP_H
#define APP_H

/* The build defines APP_NAME, APP_VERSION, SECURE_VERSION, and APP_RELEASE as major * 10000 + minor * 100 + patch. */
void app_input(char c);

#endif
