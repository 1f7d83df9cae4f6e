/* SPDX-License-Identifier: Apache-2.0 */
/* A thermostat. Digits and RETURN give the room's temperature, + and - move the target; it answers with its decision. */
#include "app.h"
#include "board.h"

/* 1.0.0 switched at the target itself, so that the relay clattered; 1.1.0 leaves it alone within a degree. */
#define BAND (APP_RELEASE >= 10100 ? 1 : 0)

static int target = 21, room;
static int heating;

static void decide(void)
{
    if (room < target - BAND)
        heating = 1;
    else if (room > target + BAND)
        heating = 0;
    print("room ");
    print_number(room);
    print(", target ");
    print_number(target);
    print(heating ? ": heating\r\n" : ": off\r\n");
}

void app_input(char c)
{
    if (c >= '0' && c <= '9') {
        room = (room * 10 + (c - '0')) % 100;
        return;
    }
    if (c == '+' && target < 30)
        target++;
    else if (c == '-' && target > 5)
        target--;
    else if (c == '\r')
        decide();
    room = 0;
}
