"""Given names, family names and towns of the world, written so that they can be copied letter by letter."""

from __future__ import annotations

_GIVEN = """
    Amara Anders Aiko Ayşe Beatriz Bruno Catalina Chiara Chidi Claire Dagny Daniel Dariusz Deniz Dilnoza
    Dmitri Eilidh Elena Emeka Emil Enrique Esra Eszter Fatima Felix Fiona Françoise Gabriel Giulia Gökhan
    Greta Gunnar Hana Haruki Helga Henrik Hiroshi Ibrahim Ingrid Isabel Ivan Jamal Jan Jelena Jiří João
    Johanna Jürgen Kaito Kamila Karim Katarzyna Keiko Khalid Kwame Lars Latoya Leila Léa Liam Linh Lucía
    Ludmila Magnus Małgorzata Marco Maria Mariana Marta Matteo Mehmet Mei Miguel Milan Mina Mohammed Nadia
    Naomi Niamh Nikolai Noor Olga Oluwaseun Omar Oscar Otto Paolo Pedro Petra Pilar Priya Rafael Rajesh Ramón
    Renée Rosa Ruth Sakura Samira Saoirse Sebastian Selma Sergio Siobhán Sofia Søren Stefan Sunita Svetlana
    Tadeusz Tamar Tariq Teresa Thandiwe Thomas Tomás Ulrike Ursula Valentina Vera Víctor Wanda Wei Xavier
    Yasmin Yuki Yusuf Zainab Zoë Zsófia
"""
_FAMILY = """
    Abara Adeyemi Almeida Andersson Antonov Bakker Banerjee Barbosa Becker Bergström Bianchi Björk Błaszczyk
    Castillo Çelik Chavez Chen Christensen Costa Delacroix Demir Diallo Dimitrov Dubois Dvořák Eriksen
    Esposito Fernández Ferrari Fischer Fitzgerald Fujimoto Gallagher García Giordano Gómez González Grabowski
    Gupta Hadjiev Hansen Haddad Hoffmann Horvat Ibáñez Ivanova Iyer Jensen Johansson Juárez Kamara Kang Kaplan
    Keller Khan Kimura Kołodziej Kovács Kowalski Kruger Kumar Larsen Lefèvre Lindqvist Lombardi López MacLeod
    Mahfouz Marchetti Martínez Mbeki McCarthy Mendoza Meyer Moreau Mori Müller Murphy Mwangi Nakamura Ndiaye
    Németh Nguyen Novák Núñez O'Brien O'Connell O'Sullivan Obi Okafor Oliveira Olsson Öztürk Papadakis Patel
    Pereira Petrov Popescu Quispe Ramírez Rao Richter Rinaldi Rossi Saleh Sánchez Santos Sato Schäfer Schmidt
    Schröder Silva Singh Sørensen Suzuki Szabó Takahashi Tanaka Torres Tremblay Ueda Vargas Vasquez Virtanen
    Wagner Walsh Watanabe Weber Wójcik Yamamoto Yıldız Zapata Zhang Zieliński
"""
_TOWNS = """
    Aalborg Accra Agadir Almaty Alicante Antalya Aomori Arequipa Århus Aswan Avignon Bamako Basel Bergen
    Bilbao Bologna Braga Bratislava Brno Bursa Cádiz Calgary Cartagena Chennai Coimbra Córdoba Cork Cusco
    Dakar Debrecen Delft Dundee Durban Erfurt Esbjerg Évora Faro Fukuoka Galway Gdańsk Ghent Girona Göteborg
    Granada Graz Guayaquil Haarlem Haifa Halifax Hanoi Havana Hobart Iaşi Izmir Jaipur Kampala Kanazawa Kaunas
    Kazan Kielce Košice Kraków Kyoto La_Paz Lagos León Liège Linköping Ljubljana Łódź Lübeck Lublin Lyon
    Málaga Malmö Maputo Mérida Mombasa Montréal Mostar München Münster Nagoya Nairobi Nantes Odense Oaxaca
    Oulu Oviedo Padua Pécs Plovdiv Porto Poznań Quito Rabat Recife Reykjavík Riga Rosario Rouen Salamanca
    Santiago Sapporo Sarajevo Segovia Sevilla Shiraz Siena Sofia Split Stavanger Surabaya Szeged Tampere Tartu
    Tbilisi Toledo Toulouse Tromsø Tunis Turku Umeå Uppsala Utrecht Valencia Varna Verona Vilnius Windhoek
    Wrocław Zagreb Zaragoza Zürich
"""
GIVEN = tuple(_GIVEN.split())
FAMILY = tuple(_FAMILY.split())
TOWNS = tuple(town.replace("_", " ") for town in _TOWNS.split())
