/* SPDX-License-Identifier: Apache-2.0 */
/* A door lock. Four digits and RETURN open it; three wrong codes close it until the next reset. L locks again. */
#include "app.h"
#include "board.h"

static const char code[] = "2468";
static int position, wrong, failures;

static void judge(void)
{
    if (failures >= 3) {
        print("blocked\r\n");
    } else if (position == 4 && !wrong) {
        failures = 0;
        print("open\r\n");
    } else {
        failures++;
        print("wrong code\r\n");
    }
    position = wrong = 0;
}

void app_input(char c)
{
    if (c == '\r')
        judge();
    else if (c == 'L')
        print("locked\r\n");
    else if (position < 4)
        wrong |= c != code[position++]; /* every digit is compared, so that time tells nothing */
    else
        wrong = 1;
}
